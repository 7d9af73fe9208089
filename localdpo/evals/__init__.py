"""The evals room: what a trained adapter's answers are like, beside those it started from."""

from localdpo.core.blas import load_openblas

load_openblas()
