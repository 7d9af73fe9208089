"""The train room: the worker process that turns a run folder with a recipe into an adapter.

docs/design.md lists the files of a training step in the order of reading.
"""

from localdpo.core.process import preload

preload()
