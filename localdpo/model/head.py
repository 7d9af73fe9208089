"""Log-probabilities of given tokens from final hidden states, without keeping logits.

A response of T tokens over a vocabulary of V has T x V logits: at 150,000 words more than all
activations together. Here the hidden states are cut into chunks; each chunk's logits live only
while its log-probabilities, and in training their gradient in the hidden states, are taken:

    d log p(y) / dh = (onehot(y) - softmax(z)) dz/dh                      z = head(h)

That gradient is [T, D], does not depend on the loss, and is computed in the forward pass, so the
backward pass is one multiplication and the logits are computed once. The chunks are chained with
`mx.depends`, or all of them would be alive at the same time.

The head is the model's own: soft-capping, scaling, quantised or tied weights are whatever the
model's class does with its hidden states.

Shape legend: T tokens (of the batch, or of a chunk), D hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from localdpo.model.arrays import custom_function, weights_restored
from localdpo.model.cpu import exp

# Bytes of float32 logits in a chunk. MLX allocates the outputs of about ten queued operations ahead,
# so some eight such buffers are alive at the peak, whatever the number of chunks. A GPU wants larger
# matrix products than a CPU to be busy.
CHUNK_BYTES = {"cpu": 5 * 2**20, "metal": 64 * 2**20, "cuda": 64 * 2**20}
MIN_CHUNK = 64


class _Given:
    """Stands where the backbone was and returns the hidden states it is given."""

    def __init__(self, backbone: nn.Module) -> None:
        self._backbone = backbone
        self.hidden: mx.array | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> mx.array:
        assert self.hidden is not None
        return self.hidden

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)


def text_model(model: nn.Module) -> nn.Module:
    """The part of the model that has a backbone `.model` and a head: itself, or its language model."""
    return model.language_model if "language_model" in model else model


class Head:
    """The model's own head as a function [..., D] -> [..., V].

    A shallow copy of the model, whose backbone returns what it is given, is called in its place;
    weights are shared with the model, so an update of the model is seen.
    """

    def __init__(self, model: nn.Module) -> None:
        text = text_model(model)
        self._given = _Given(text.model)
        self._shell = copy.copy(text)
        self._shell.model = self._given
        self._parts = nn.Module()
        self._parts.parts = [
            m for m in (text.get("lm_head"), text.model.get("embed_tokens")) if m is not None
        ]

    def __call__(self, hidden_TD: mx.array) -> mx.array:
        self._given.hidden = hidden_TD
        # The token ids are never read: the stand-in answers before they would be.
        return self._shell(mx.zeros(hidden_TD.shape[:-1], dtype=mx.int32))

    def trainable(self) -> Any:
        """The tree of trainable parameters of the head's modules; without leaves when it is frozen."""
        return self._parts.trainable_parameters()

    @contextmanager
    def holding(self, tree: Any) -> Iterator[None]:
        """While the context holds, the modules have the parameters of a tree as `trainable` returns it."""
        with weights_restored(self._parts):
            self._parts.update(tree)
            yield


def chunk_size(vocabulary: int, budget: int) -> int:
    """Tokens a chunk such that its float32 logits stay within `budget` bytes."""
    return max(MIN_CHUNK, budget // (4 * vocabulary))


@custom_function
def _scored(logits_TV: mx.array, targets_T: mx.array) -> tuple[mx.array, mx.array, mx.array]:
    """Log-probabilities [T] of the targets, and for the vjp exp(z - max z) [T, V] and its sum [T, 1]."""
    z_TV = logits_TV.astype(mx.float32)
    top_T1 = mx.max(z_TV, axis=-1, keepdims=True)
    e_TV = exp(z_TV - top_T1)
    total_T1 = mx.sum(e_TV, axis=-1, keepdims=True)
    picked_T1 = mx.take_along_axis(z_TV, targets_T[:, None], axis=-1)
    return (picked_T1 - top_T1 - mx.log(total_T1))[:, 0], e_TV, total_T1


@_scored.vjp
def _scored_vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, mx.array]:
    logits_TV, targets_T = primals
    logps_T, e_TV, total_T1 = outputs
    upstream_T1 = cotangents[0][:, None]
    is_target_TV = mx.arange(logits_TV.shape[-1], dtype=targets_T.dtype)[None] == targets_T[:, None]
    # Of the other tokens -p; of the target 1 - p.
    own_T1 = upstream_T1 * -mx.expm1(logps_T[:, None])
    grad_TV = mx.where(is_target_TV, own_T1, e_TV * (-upstream_T1 / total_T1))
    return grad_TV.astype(logits_TV.dtype), mx.zeros_like(targets_T)


@custom_function
def _with_gradient(hidden_TD: mx.array, logps_T: mx.array, grad_TD: mx.array) -> mx.array:
    """`logps_T`, with `grad_TD` as its known gradient in `hidden_TD`."""
    return logps_T + 0.0


@_with_gradient.vjp
def _with_gradient_vjp(primals: Any, cotangent_T: Any, output: Any) -> tuple[mx.array, mx.array, mx.array]:
    hidden_TD, logps_T, grad_TD = primals
    flow_TD = (cotangent_T[:, None] * grad_TD).astype(hidden_TD.dtype)
    return flow_TD, mx.zeros_like(logps_T), mx.zeros_like(grad_TD)


def token_scores(
    head: Head,
    hidden_TD: mx.array,
    targets_T: mx.array,
    *,
    chunk: int,
    gradient: bool,
    collisions: bool = False,
) -> list[mx.array]:
    """Log-probabilities [T] (float32, nats) of the targets given final hidden states, and more.

    Args:
        head: hidden states to logits.
        chunk: tokens whose logits may be alive at once.
        gradient: whether the result will be differentiated; without it only values are computed.
            A head that holds trainable weights has its chunks recomputed in the backward pass
            instead of having their gradient prepared.
        collisions: whether ln sum_v p_v^2 [T] of each position follows in the list, float32, without
            gradient: the log-probability that two draws from the distribution are the same token.

    Raises:
        ValueError: shapes that do not fit, or a chunk below 1.
    """
    if hidden_TD.ndim != 2 or targets_T.shape != hidden_TD.shape[:1]:
        raise ValueError(
            f"expected hidden [T, D] and targets [T], got {hidden_TD.shape} and {targets_T.shape}"
        )
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, got {chunk}")
    weights = head.trainable() if gradient else {}
    trains = bool(tree_flatten(weights))
    pieces: list[list[mx.array]] = []
    before: list[mx.array] = []
    for start in range(0, hidden_TD.shape[0], chunk):
        h_TD, y_T = hidden_TD[start : start + chunk], targets_T[start : start + chunk]
        if before:
            # The targets too: what is made of them alone would be made for all chunks at once.
            h_TD, y_T = mx.depends([h_TD, y_T], before)
        if trains:
            piece = before = _recomputed(head, weights, h_TD, y_T, collisions)
        elif gradient:
            values, slopes_TD = _prepared(head, h_TD, y_T, collisions)
            before = [*values, slopes_TD]
            piece = [_with_gradient(h_TD, values[0], slopes_TD), *values[1:]]
        else:
            piece = before = _chunk_scores(head, h_TD, y_T, collisions)
        pieces.append(piece)
    if not pieces:
        return [mx.zeros((0,), dtype=mx.float32)] * (1 + collisions)
    return [mx.concatenate(list(parts)) for parts in zip(*pieces, strict=True)]


def _chunk_scores(head: Head, hidden_TD: mx.array, targets_T: mx.array, collisions: bool) -> list[mx.array]:
    """Log-probabilities [T] and, if they are wanted, ln sum_v p_v^2 [T]."""
    logps_T, e_TV, total_T1 = _scored(head(hidden_TD), targets_T)
    if not collisions:
        return [logps_T]
    softmax_TV = mx.stop_gradient(e_TV / total_T1)
    return [logps_T, mx.log(mx.square(softmax_TV).sum(axis=-1))]


def _prepared(
    head: Head, hidden_TD: mx.array, targets_T: mx.array, collisions: bool
) -> tuple[list[mx.array], mx.array]:
    """Scores of a chunk, and the gradients [T, D] of its log-probabilities in the hidden states."""

    def score(h_TD: mx.array) -> list[mx.array]:
        return _chunk_scores(head, h_TD, targets_T, collisions)

    # No gradient comes back from the collisions, whatever cotangent they get.
    ones = [mx.ones(targets_T.shape, dtype=mx.float32)] * (1 + collisions)
    values, grads = mx.vjp(score, [mx.stop_gradient(hidden_TD)], ones)
    return values, grads[0]


def _recomputed(
    head: Head, weights: Any, hidden_TD: mx.array, targets_T: mx.array, collisions: bool
) -> list[mx.array]:
    """Scores of a chunk whose log-probabilities are differentiable in the head's weights as well."""

    def score(tree: Any, h_TD: mx.array) -> list[mx.array]:
        with head.holding(tree):
            return _chunk_scores(head, h_TD, targets_T, collisions)

    scores: list[mx.array] = mx.checkpoint(score)(weights, hidden_TD)
    return scores
