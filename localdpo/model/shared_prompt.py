"""The forward pass of a preference pair: the prompt once, both responses on top of it.

    prompt pass     context [P, C], left-padded      -> keys and values of every layer
    response pass   responses [N, R] at offset C     -> hidden states

The context is the prompt without its last token; that token heads each response, so the output of
the prompt pass is never needed and lazy evaluation skips the tail of its last layer. Keys and
values travel through cache objects that a model's layers use as they use any cache; both kinds
here are pure (no state from one call to the next), so the two passes are differentiable.
Positions count from the left edge of the padding: relative positions, which rotary embeddings
turn into scores, are what they would be without it.

Gradient checkpointing wraps each layer in a function whose inputs and outputs are arrays only:
a prompt layer returns (h, k, v), a response layer takes (h, k, v). Keys and values hidden in a
Python object would be no inputs of the checkpointed function, and their gradients would be lost.

Shape legend: P pairs, K responses a pair, N = K*P responses, C context width, R response width, L sequence
width, H key heads, D head size, E hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from localdpo.model.arrays import recomputed
from localdpo.model.head import text_model


class PromptRecorder:
    """A cache for the prompt pass: keeps each layer's keys and values [P, H, C, D]."""

    offset = 0

    def __init__(self, pad: mx.array, mask_axes: int = 4) -> None:
        self.pad = pad
        self.mask_axes = mask_axes
        self.keys: mx.array
        self.values: mx.array

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self.keys, self.values = keys, values
        return keys, values

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """Causal [P, 1, N, N] without the padding; a padded row sees itself, or softmax had nothing."""
        row, col = mx.arange(N)[:, None], mx.arange(N)[None]
        mask = (row >= col) & _in_window(row, col, window_size)
        real = col >= self.pad[:, None, None]
        return _with_axes((mask & real) | (row == col), self.mask_axes)


class SharedPrefix:
    """A cache for the response pass: the recorded prompt in front of what each layer adds.

    Keys and values are the prompt's, one row a pair; they are repeated for the K responses.
    """

    def __init__(
        self, keys: mx.array, values: mx.array, pad: mx.array, responses: int, mask_axes: int = 4
    ) -> None:
        self.keys, self.values = keys, values
        self.pad = pad
        self.mask_axes = mask_axes
        self.responses = responses
        self.offset = keys.shape[2]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        prefix_k = mx.concatenate([self.keys] * self.responses, axis=0)
        prefix_v = mx.concatenate([self.values] * self.responses, axis=0)
        return mx.concatenate([prefix_k, keys], axis=2), mx.concatenate([prefix_v, values], axis=2)

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> mx.array:
        """[N, 1, R, C + R] with R = `N` of the call: the unpadded prompt and the response so far."""
        row = mx.arange(self.offset, self.offset + N)[:, None]
        col = mx.arange(self.offset + N)[None]
        mask = (row >= col) & _in_window(row, col, window_size)
        real = col >= mx.tile(self.pad, self.responses)[:, None, None]
        return _with_axes(mask & real, self.mask_axes)


def _with_axes(mask: mx.array, axes: int) -> mx.array:
    """A mask [B, N, M] with axes of one for the heads."""
    return mask.reshape(mask.shape[0], *[1] * (axes - 3), *mask.shape[1:])


def _in_window(row: mx.array, col: mx.array, window: int | None) -> mx.array:
    return mx.array(True) if window is None else row < col + window


def shared_hidden(
    model: nn.Module,
    context_PC: mx.array,
    pad_P: mx.array,
    response_NR: mx.array,
    *,
    checkpoint: bool = False,
) -> mx.array:
    """Final hidden states [N, R, E] of the responses' input positions.

    Args:
        model: a model whose layers keep keys and values (see `can_share`).
        context_PC: int32, prompts without their last token, left-padded, C >= 1.
        pad_P: int32, padded columns of each context.
        response_NR: int32, inputs: last prompt token, then the response but its last token.
        checkpoint: recompute each layer in the backward pass.
    """
    text = text_model(model)
    backbone = text.model
    responses = response_NR.shape[0] // context_PC.shape[0]
    axes = mask_axes(text)
    recorders = [PromptRecorder(pad_P, axes) for _ in text.layers]
    with checkpointed_layers(text, enabled=checkpoint):
        backbone(context_PC, cache=recorders)
        prefixes = [SharedPrefix(r.keys, r.values, pad_P, responses, axes) for r in recorders]
        return backbone(response_NR, cache=prefixes)


def plain_hidden(model: nn.Module, tokens_NL: mx.array, *, checkpoint: bool = False) -> mx.array:
    """Final hidden states [N, L, E] of whole sequences, right-padded: for models that cannot share."""
    text = text_model(model)
    with checkpointed_layers(text, enabled=checkpoint):
        return text.model(tokens_NL)


def mask_axes(text: nn.Module) -> int:
    """Axes of the scores that a mask must broadcast to: gemma2 splits its heads into groups of their own."""
    args = text.args
    grouped = args.model_type == "gemma2" and args.num_attention_heads != args.num_key_value_heads
    return 5 if grouped else 4


def can_share(model: nn.Module) -> bool:
    """Whether every layer keeps ordinary keys and values (state-space layers do not)."""
    from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

    text = text_model(model)
    if "model" not in text or not hasattr(text, "layers"):
        return False
    caches = make_prompt_cache(text)
    return len(caches) == len(text.layers) and all(isinstance(c, (KVCache, RotatingKVCache)) for c in caches)


@contextmanager
def checkpointed_layers(model: nn.Module, *, enabled: bool) -> Iterator[None]:
    """While the context holds, calls of the model's layers are recomputed in the backward pass."""
    if not enabled:
        yield
        return
    classes = {type(layer) for layer in model.layers}
    last = model.layers[-1]
    originals = {cls: cls.__call__ for cls in classes}
    for cls, call in originals.items():
        cls.__call__ = _checkpointed(call, last)
    try:
        yield
    finally:
        for cls, call in originals.items():
            cls.__call__ = call


def _checkpointed(call: Any, last: nn.Module) -> Any:
    """`call` of a layer as a checkpointed function of arrays: its weights, inputs, and keys and values."""

    def wrapped(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        cache = next(
            (a for a in (*args, *kwargs.values()) if isinstance(a, PromptRecorder | SharedPrefix)), None
        )
        if isinstance(cache, PromptRecorder) and layer is last:
            # Only its keys and values are used: unwrapped, the rest of it is never computed.
            return call(layer, *args, **kwargs)
        slots = _Slots(args, kwargs, cache)
        held = [cache.keys, cache.values] if isinstance(cache, SharedPrefix) else []

        def inner(weights: Any, arrays: list[mx.array], keys_values: list[mx.array]) -> list[mx.array]:
            layer.update(weights)
            inside = _fresh(cache, keys_values)
            a, k = slots.fill(arrays, inside)
            out = call(layer, *a, **k)
            recorded = [inside.keys, inside.values] if isinstance(inside, PromptRecorder) else []
            return [out, *recorded]

        weights = layer.trainable_parameters()
        out, *recorded = recomputed(inner)(weights, slots.arrays, held)
        layer.update(weights)
        if isinstance(cache, PromptRecorder):
            cache.update_and_fetch(*recorded)
        return out

    return wrapped


def _fresh(cache: Any, keys_values: list[mx.array]) -> Any:
    if isinstance(cache, SharedPrefix):
        return SharedPrefix(keys_values[0], keys_values[1], cache.pad, cache.responses, cache.mask_axes)
    return PromptRecorder(cache.pad, cache.mask_axes) if isinstance(cache, PromptRecorder) else cache


class _Slots:
    """A call's arguments with the arrays taken out, so that they can be put in again."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], cache: Any) -> None:
        self.args, self.kwargs, self.cache = args, kwargs, cache
        self.arrays = [a for a in (*args, *kwargs.values()) if isinstance(a, mx.array)]

    def fill(self, arrays: list[mx.array], cache: Any) -> tuple[list[Any], dict[str, Any]]:
        rest = iter(arrays)

        def put(value: Any) -> Any:
            if isinstance(value, mx.array):
                return next(rest)
            return cache if value is self.cache and cache is not None else value

        return [put(a) for a in self.args], {k: put(v) for k, v in self.kwargs.items()}
