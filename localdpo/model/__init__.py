"""The model room: backend, loading, LoRA, the shared-prompt forward, the head, generation."""

from localdpo.core.blas import load_openblas

load_openblas()
