"""The answering room: prompts, who answers them, and the one generator that keeps answers on disk."""

from localdpo.core.process import preload

preload()
