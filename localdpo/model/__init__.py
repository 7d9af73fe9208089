"""The model room: backend, loading, LoRA, the shared-prompt forward, the head, generation."""

from localdpo.core.preload import preload

preload()
