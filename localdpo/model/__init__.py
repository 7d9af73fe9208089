"""The model room: backend, loading, LoRA, the forward pass in one line of tokens, the head, generation."""

from localdpo.core.process import preload

preload()
