"""The model room: backend, loading, LoRA, the shared-prompt forward, the head, generation."""

from localdpo.core.process import preload

preload()
