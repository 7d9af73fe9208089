"""The train room: the worker process that turns a run folder with a recipe into an adapter."""

from localdpo.core.blas import load_openblas

load_openblas()
