"""The forward pass of a micro-batch in one line: its tokens end to end, without padding between them.

    [ context of row 0 | context of row 1 | ... | response 0 | response 1 | ... ]        S tokens

A context is a prompt without its last token. It runs once; each response to it, headed by the prompt's last
token, attends to it and to itself. Everything but attention and rotary embeddings looks at one token at a
time, so a model's own layers run on the line as they are. Rotary embeddings take one position a token.
Attention takes the line in one of two forms:

    segments    the queries of each context and of each response by themselves: nothing is computed in vain
    array mask  all tokens against all tokens: one shape, as a traced step needs it

Both hide behind what a model's layers know: a cache object, whose `offset` is the positions, and the mask
that it makes. Neither keeps anything from one call to the next, so the pass is differentiable.

Shape legend: S tokens of the line, E hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from itertools import pairwise
from typing import Any, Final, NamedTuple

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from localdpo.model import cpu
from localdpo.model.arrays import RepeatableDropout, drawing_from, recomputed, weights_restored
from localdpo.model.backend import device_name
from localdpo.model.head import text_model

# `branch_S` of a context's tokens, which all responses of their row see; `row_S` of padding.
CONTEXT: Final = -1
PADDING: Final = -1
# Metal's gradient of fused attention is said to refuse eight queries or fewer.
FEWEST_FUSED: Final = 16
# What a segment costs attention beside its scores, in scores of a head: operations of its own in every layer.
# An estimate, as is the most tokens whose array mask is not too large.
SEGMENT_COST: Final = {"cpu": 4_000, "metal": 100_000, "cuda": 100_000}
MOST_MASKED: Final = 2048
# Queries that attention takes at once on a CPU, about: later keys than the last of them are left out.
CAUSAL_BLOCK: Final = 128


class Segment(NamedTuple):
    """Columns [start, end) of a line: they attend to [prompt, prompt_end) and, causally, to themselves."""

    start: int
    end: int
    prompt: int
    prompt_end: int

    @property
    def scores(self) -> list[int]:
        """Products of a query and a key in each head, of each block that attention takes at once."""
        queries = self.end - self.start
        return [(end - start) * (self.keys - queries + end) for start, end in causal_blocks(queries)]

    @property
    def keys(self) -> int:
        """Columns that the segment attends to."""
        return self.end - self.start + self.prompt_end - self.prompt


def causal_blocks(queries: int) -> list[tuple[int, int]]:
    """[start, end) of the blocks of so many queries. A GPU's kernel takes all at once, and cuts by itself."""
    count = max(1, round(queries / CAUSAL_BLOCK)) if device_name() == "cpu" else 1
    return list(pairwise(queries * number // count for number in range(count + 1)))


def segments_of(contexts_P: np.ndarray, lengths_KP: np.ndarray) -> tuple[Segment, ...]:
    """The segments of a line of contexts and responses of these lengths."""
    ends_P = np.cumsum(contexts_P)
    segments = [Segment(int(end - n), int(end), 0, 0) for end, n in zip(ends_P, contexts_P, strict=True) if n]
    start = int(ends_P[-1])
    for lengths_P in lengths_KP:
        for end, context, length in zip(ends_P, contexts_P, lengths_P, strict=True):
            segments.append(Segment(start, start + int(length), int(end - context), int(end)))
            start += int(length)
    return tuple(segments)


def segments_for_attention(contexts_P: np.ndarray, lengths_KP: np.ndarray) -> tuple[Segment, ...]:
    """`segments_of`, or none where an array mask is cheaper.

    A mask has a score for every two tokens of the line, however few of them see each other.
    """
    segments = segments_of(contexts_P, lengths_KP)
    tokens = int(contexts_P.sum() + lengths_KP.sum())
    cost = sum(sum(s.scores) for s in segments) + SEGMENT_COST[device_name()] * len(segments)
    return segments if cost < tokens * tokens or tokens > MOST_MASKED else ()


class LineCache:
    """What a model's layers take as their cache.

    Args:
        line_4S: of each token of the line its id, its position from the beginning of its prompt, its row
            (PADDING behind the last response) and its response (CONTEXT for a prompt's), int32.
        segments: the line cut for attention; none where it takes an array mask.
        axes: see `mask_axes`.
    """

    def __init__(self, line_4S: mx.array, segments: tuple[Segment, ...], axes: int) -> None:
        _, self.offset, self._row_S, self._branch_S = line_4S
        self._segments, self._axes = segments, axes

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        return keys, values

    def make_mask(self, N: int, return_array: bool = False, window_size: int | None = None) -> Any:
        """A SegmentMask, or a boolean array [1, 1, S, S]; `N` is S."""
        if self._segments and not return_array:
            return SegmentMask(self._segments, window_size)
        query, key = self.offset[:, None], self.offset[None]
        mask = (self._row_S[:, None] == self._row_S[None]) & (query >= key)
        mask &= (self._branch_S[None] == CONTEXT) | (self._branch_S[:, None] == self._branch_S[None])
        if window_size is not None:
            mask &= query < key + window_size
        return mask.reshape(*[1] * (self._axes - 2), N, N)


class SegmentMask:
    """Stands where a model's layers pass a mask on to attention."""

    def __init__(self, segments: tuple[Segment, ...], window: int | None) -> None:
        self._segments, self._window = segments, window
        # One array for all layers.
        self._of_shape = cache(self._mask)

    def attention(self, queries: mx.array, keys: mx.array, values: mx.array, **options: Any) -> mx.array:
        """Attention of each segment, put together again: [1, heads, S, head size] as the queries."""
        # The gradient of a split is one array; that of a slice is an array of the whole line.
        cuts = [segment.start for segment in self._segments[1:]]
        parts = zip(*(mx.split(array, cuts, axis=2) for array in (queries, keys, values)), strict=True)
        prompts: dict[int, tuple[mx.array, mx.array]] = {}
        outputs = []
        for segment, (own_queries, own_keys, own_values) in zip(self._segments, parts, strict=True):
            prompts[segment.start] = own_keys, own_values
            if segment.prompt_end > segment.prompt:
                prompt_keys, prompt_values = prompts[segment.prompt]
                own_keys = mx.concatenate([prompt_keys, own_keys], axis=2)
                own_values = mx.concatenate([prompt_values, own_values], axis=2)
            blocks = causal_blocks(segment.end - segment.start)
            cut = mx.split(own_queries, [start for start, _ in blocks[1:]], axis=2)
            for block, (start, end) in zip(cut, blocks, strict=True):
                seen = segment.keys - blocks[-1][1] + end
                mask = self._of_shape(end - start, seen)
                seen_keys, seen_values = own_keys[:, :, :seen], own_values[:, :, :seen]
                outputs.append(_line_attention(block, seen_keys, seen_values, mask=mask, **options))
        return mx.concatenate(outputs, axis=2)

    def _mask(self, queries: int, keys: int) -> Any:
        """The causal mask of the last `queries` columns of `keys`, as attention takes it."""
        window = None if self._window is None or keys <= self._window else self._window
        if queries >= FEWEST_FUSED and window is None and device_name() != "cpu":
            return "causal"
        query, key = mx.arange(keys - queries, keys)[:, None], mx.arange(keys)[None]
        mask = query >= key
        return mask if window is None else mask & (query < key + window)


_fast: Any = mx.fast
_attention = _fast.scaled_dot_product_attention


def _line_attention(queries: mx.array, keys: mx.array, values: mx.array, **options: Any) -> mx.array:
    """`mx.fast.scaled_dot_product_attention`, which takes a SegmentMask besides."""
    mask = options.pop("mask", None)
    if isinstance(mask, SegmentMask):
        return mask.attention(queries, keys, values, **options)
    if cpu.takes_attention(queries, mask, options.get("sinks")):
        return cpu.attention(queries, keys, values, mask=mask, scale=options["scale"])
    return _attention(queries, keys, values, **options, mask=mask)


@contextmanager
def _segments_in_attention() -> Iterator[None]:
    """While the context holds, attention takes a SegmentMask. Layers call it by its name in `mx.fast`."""
    before = _fast.scaled_dot_product_attention
    _fast.scaled_dot_product_attention = _line_attention
    try:
        yield
    finally:
        _fast.scaled_dot_product_attention = before


def take_positions(model: nn.Module) -> None:
    """Have the model's rotary embeddings take an array of one position a token as their offset, in place.

    What they compute for any other offset stays the same.
    """
    for module in model.modules():
        kind: Any = type(module)
        module.__class__ = _by_token(kind)


@cache
def _by_token(kind: Any) -> Any:
    """`kind`, by token if it is called with an input and an offset as rotary embeddings are."""
    names = list(inspect.signature(kind.__call__).parameters)
    if names[2:3] != ["offset"] or hasattr(kind, "by_token"):
        return kind

    class ByToken(kind):
        """Each token of a line as a sequence of its own, for which MLX takes an offset of its own."""

        by_token = True

        def __call__(self, x: mx.array, offset: Any = 0, **options: Any) -> mx.array:
            if not isinstance(offset, mx.array) or x.shape[0] != 1 or offset.shape != (x.shape[-2],):
                return super().__call__(x, offset=offset, **options)
            turned = super().__call__(x.transpose(2, 1, 0, 3), offset=offset, **options)
            return turned.transpose(2, 1, 0, 3)

    ByToken.__name__ = ByToken.__qualname__ = kind.__name__
    return ByToken


def line_hidden(
    model: nn.Module, line_4S: mx.array, segments: tuple[Segment, ...], *, checkpoint: bool = False
) -> mx.array:
    """Final hidden states [S, E].

    Args:
        model: one that `can_share`, prepared by `take_positions`.
        line_4S, segments: see LineCache.
        checkpoint: recompute each layer in the backward pass.

    Raises:
        TypeError, ValueError, AttributeError: a model whose layers do more with a mask or an offset than to
            pass it on.
    """
    text = text_model(model)
    caches = [LineCache(line_4S, segments, mask_axes(text))] * len(text.layers)
    with checkpointed_layers(text, enabled=checkpoint), _segments_in_attention():
        states = text.model(line_4S[:1], cache=caches)
    if states.ndim != 3 or states.shape[:2] != (1, line_4S.shape[1]):
        raise ValueError(f"a line of {line_4S.shape[1]} tokens became states of shape {states.shape}")
    return states[0]


def mask_axes(text: nn.Module) -> int:
    """Axes of the scores that a mask must broadcast to: gemma2 splits its heads into groups of their own."""
    # Not all models have their arguments.
    args = getattr(text, "args", None)
    if args is None or args.model_type != "gemma2":
        return 4
    return 5 if args.num_attention_heads != args.num_key_value_heads else 4


def can_share(model: nn.Module) -> bool:
    """Whether every layer keeps ordinary keys and values (state-space layers do not)."""
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
    originals = {cls: cls.__call__ for cls in {type(layer) for layer in model.layers}}
    for cls, call in originals.items():
        cls.__call__ = _checkpointed(call)
    try:
        yield
    finally:
        for cls, call in originals.items():
            cls.__call__ = call


def _checkpointed(call: Any) -> Any:
    """`call` of a layer as a checkpointed function of its weights and of the arrays it is given."""

    def wrapped(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
        # MLX's random state would have moved on in the backward pass.
        draws = any(isinstance(module, RepeatableDropout) and module.draws for module in layer.modules())
        keys = [mx.random.randint(0, 2**31 - 1, (2,)).astype(mx.uint32)] if draws else []
        given, around = _arrays_in((args, kwargs))
        returned: Any = None

        def inner(weights: Any, arrays: list[mx.array], keys: list[mx.array]) -> list[mx.array]:
            nonlocal returned
            # Recomputed after the forward pass is over, and differentiated at once: nothing is kept for long.
            drawing = drawing_from(keys[0]) if keys else nullcontext()
            with weights_restored(layer), _segments_in_attention(), cpu.factors_forgotten(), drawing:
                layer.update(weights)
                positional, named = _with_arrays(around, arrays)
                results, returned = _arrays_in(call(layer, *positional, **named))
            return results

        results = recomputed(inner)(layer.trainable_parameters(), given, keys)
        return _with_arrays(returned, results)

    return wrapped


# Stands for an array in what is around it.
_ARRAY: Final = object()


def _arrays_in(tree: Any) -> tuple[list[mx.array], Any]:
    """The arrays in tuples, lists and dicts within each other, and what is around them.

    gemma4's layers hand on keys and values of earlier ones as a tuple. An array that a checkpointed function
    does not get as its argument has no gradient.
    """
    arrays: list[mx.array] = []

    def taken(leaf: Any) -> Any:
        if not isinstance(leaf, mx.array):
            return leaf
        arrays.append(leaf)
        return _ARRAY

    return arrays, tree_map(taken, tree, is_leaf=_is_module)


def _with_arrays(around: Any, arrays: Iterable[mx.array]) -> Any:
    """The inverse of `_arrays_in`."""
    rest = iter(arrays)
    return tree_map(lambda leaf: next(rest) if leaf is _ARRAY else leaf, around, is_leaf=_is_module)


def _is_module(value: Any) -> bool:
    """A module is a dict, too."""
    return isinstance(value, nn.Module)
