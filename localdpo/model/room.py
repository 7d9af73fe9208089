"""How much goes through a model at once where no gradient is taken.

A pass over many tokens has two bounds. Memory is one. The other is time: on a Mac whose display is on, the
system ends a GPU command that runs for long, and a command is a few layers' products over all tokens of the
pass. Some thousand tokens keep a GPU busy; more only make the command longer.
"""

from __future__ import annotations

from typing import Final

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from localdpo.model.arrays import float_types
from localdpo.model.backend import device_name, memory_limit
from localdpo.model.head import text_model

# Tokens of one pass, padding included.
PASS_TOKENS: Final = 2**12
# Of the memory that is free, what keys and values may take; the rest is for the pass itself.
SHARE: Final = 0.5
# Keys and values of a token in a model that does not say its sizes: those of an 8B model in 16 bits.
UNKNOWN_BYTES: Final = 2 * 36 * 1024 * 2


def rows_in_pass(tokens: int, most: int) -> int:
    """Rows of `tokens` tokens, padding included, that go through a model together: 1 to `most`."""
    return min(most, max(1, PASS_TOKENS // max(1, tokens)))


def answers_at_once(model: nn.Module, tokens: int, most: int) -> int:
    """Answers of `tokens` tokens, with their prompts, whose keys and values fit together: 1 to `most`.

    It changes no answer but by rounding.
    """
    free = memory_limit(device_name()) - mx.get_active_memory()
    return min(most, max(1, int(SHARE * free) // (max(1, tokens) * cache_bytes(model))))


def cache_bytes(model: nn.Module) -> int:
    """Bytes of a token's keys and values over all layers that keep some, 1 at least."""
    text = text_model(model)
    args = getattr(text, "args", None)
    heads = getattr(args, "num_attention_heads", None)
    hidden = getattr(args, "hidden_size", None)
    size = getattr(args, "head_dim", None) or (hidden // heads if hidden and heads else None)
    kept = getattr(args, "num_key_value_heads", None) or heads
    if not (isinstance(size, int) and isinstance(kept, int)):
        return UNKNOWN_BYTES
    layers = sum(isinstance(cache, KVCache | RotatingKVCache) for cache in make_prompt_cache(text))
    width = 4 if float_types(model) == {mx.float32} else 2
    return max(1, 2 * layers * kept * size * width)
