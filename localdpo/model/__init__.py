"""The model room: backend, loading, LoRA, the shared-prompt forward, the head, generation."""
