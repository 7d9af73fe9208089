"""The interop room: models and adapters in the layouts of other programs, written, checked and read."""

from localdpo.core.process import preload

preload()
