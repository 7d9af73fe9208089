"""The train room: the worker process that turns a run folder with a recipe into an adapter."""

from localdpo.core.preload import preload

preload()
