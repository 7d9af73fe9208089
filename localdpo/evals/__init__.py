"""The evals room: what a trained adapter's answers are like, beside those it started from."""

from localdpo.core.process import preload

preload()
