"""Models in llama.cpp's GGUF files: read into mlx-lm folders without loss, and written from them."""

from localdpo.core.process import preload

preload()
