"""From a batch of token ids to the log-probability of each response.

Two paths with one result: the shared-prompt path (see `shared_prompt`), and the plain path that
runs prompt and response of each row as one sequence, for models whose layers keep a state that
cannot be shared. Both gather the hidden states of scored positions only, packed without padding,
before the head sees them.

Shape legend: P pairs, K responses a pair, C context width, R response width, L sequence width,
T scored tokens of the batch. All widths are padded ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from localdpo.data.batches import Shape, bucket
from localdpo.data.types import Batch
from localdpo.model.backend import device_name
from localdpo.model.head import CHUNK_BYTES, Head, chunk_size, token_logps, token_scores
from localdpo.model.shared_prompt import can_share, plain_hidden, shared_hidden

Arrays = Mapping[str, mx.array]


def needed_shape(batch: Batch, *, shared: bool) -> Shape:
    """The sizes that the arrays of a batch have at least."""
    rows, response = len(batch.indices), int(batch.lengths.max())
    contexts = batch.context.shape[1] - batch.context_pad
    if shared:
        contexts = np.maximum(contexts, 1)
    whole = int((contexts + batch.lengths.reshape(-1, rows)).max())
    return Shape(rows, whole, response if shared else whole, int(batch.lengths.sum()))


def bucketed_shape(batch: Batch, *, shared: bool) -> Shape:
    """The next shape of few widths, for a pass that is not traced; every prompt fits the context."""
    need = needed_shape(batch, shared=shared)
    response = bucket(need.response)
    context = bucket(batch.context.shape[1]) if shared else 0
    return Shape(need.rows, context + response, response, packed_width(need.packed))


def batch_arrays(batch: Batch, *, shared: bool, shape: Shape | None = None) -> dict[str, mx.array]:
    """The arrays a forward pass takes, padded to `shape`, or to the next of few widths.

    Returns a dict of
        inputs: `context` [P, C], `pad` [P] and `response` [K*P, R] when shared, else `tokens` [K*P, L];
        `gather` [T] places of the scored positions' hidden states in the flattened hidden states;
        `targets` [T] the tokens they should predict; `owner` [T] the response row of each;
        `valid` [T] 1.0, or 0.0 for padding of T;
        `public` [T] 1.0 for the tokens of a response within the length of its row's shortest one, else 0.0;
        `lengths` [K*P] scored tokens of each response.
    """
    if shape is None:
        shape = bucketed_shape(batch, shared=shared)
    context, pad, response, starts = _inputs(batch, shape)
    inputs = {"context": context, "pad": pad, "response": response} if shared else {"tokens": response}
    arrays = {**inputs, **_packed(batch, starts, shape), "lengths": batch.lengths}
    return {name: mx.array(value) for name, value in arrays.items()}


def _inputs(batch: Batch, shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(context [P, C], pad [P], response [K*P, R], starts [K*P]), int32, of a shape.

    Of a context longer than C the rest is put before the responses, which then begin at `starts`.
    """
    pairs, width = len(batch.indices), shape.context
    context = np.zeros((pairs, width), dtype=np.int32)
    response = np.zeros((len(batch.lengths), shape.response), dtype=np.int32)
    lengths = batch.context.shape[1] - batch.context_pad
    kept = np.minimum(lengths, width)
    for row, length in enumerate(batch.lengths):
        pair = row % pairs
        ids = batch.context[pair, batch.context_pad[pair] :]
        context[pair, width - kept[pair] :] = ids[: kept[pair]]
        sequence = np.concatenate([ids[kept[pair] :], batch.response[row, :length]])
        response[row, : len(sequence)] = sequence
    starts = np.tile(lengths - kept, len(batch.lengths) // pairs)
    return context, (width - kept).astype(np.int32), response, starts


def _packed(batch: Batch, starts: np.ndarray, shape: Shape) -> dict[str, np.ndarray]:
    """Where the scored positions lie, packed over the batch and padded to T."""
    owner = np.repeat(np.arange(len(batch.lengths), dtype=np.int32), batch.lengths)
    column = np.concatenate([np.arange(n, dtype=np.int32) for n in batch.lengths])
    total, pairs = len(owner), len(batch.indices)
    shortest = batch.lengths.reshape(-1, pairs).min(axis=0)
    arrays = {
        "gather": owner * shape.response + starts[owner] + column,
        "targets": batch.response[owner, column + 1],
        "owner": owner,
        "valid": np.ones(total, dtype=np.float32),
        "public": (column < np.tile(shortest, len(batch.lengths) // pairs)[owner]).astype(np.float32),
    }
    return {
        k: np.pad(v, (0, shape.packed - total)).astype(np.float32 if k in ("valid", "public") else np.int32)
        for k, v in arrays.items()
    }


def packed_width(total: int) -> int:
    """`total` scored tokens rounded up to one of few sizes: eighths of the power of two above it."""
    step = max(16, 1 << max(0, (total - 1).bit_length() - 3))
    return -(-total // step) * step


class Forward:
    """Log-probabilities of responses under a model, by the shared-prompt path or the plain one.

    Args:
        shared: which path is taken; `can_share` decides unless given.
        checkpoint: recompute layers in the backward pass.
        split: whether `scores` gives the sums over the public tokens too.
        align: whether `scores` gives the alignment too.
        chunk_bytes: of one chunk's logits; the device's default unless given.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        shared: bool | None = None,
        checkpoint: bool = False,
        split: bool = False,
        align: bool = False,
        chunk_bytes: int | None = None,
    ) -> None:
        self.model = model
        self.shared = can_share(model) if shared is None else shared
        self.checkpoint = checkpoint
        self.split, self.align = split, align
        self.head = Head(model)
        self._chunk_bytes = chunk_bytes or CHUNK_BYTES[device_name()]
        self._vocabulary: int | None = None

    def hidden(self, arrays: Arrays) -> mx.array:
        """Final hidden states of the scored positions [T, D]."""
        if self.shared:
            states = shared_hidden(
                self.model, arrays["context"], arrays["pad"], arrays["response"], checkpoint=self.checkpoint
            )
        else:
            states = plain_hidden(self.model, arrays["tokens"], checkpoint=self.checkpoint)
        return states.reshape(-1, states.shape[-1])[arrays["gather"]]

    def token_logps(self, arrays: Arrays, *, gradient: bool) -> mx.array:
        """Log-probability of every scored token [T], float32 nats; 0 where `valid` is 0."""
        hidden = self.hidden(arrays)
        logps = token_logps(self.head, hidden, arrays["targets"], chunk=self.chunk(hidden), gradient=gradient)
        return logps * arrays["valid"]

    def logps(self, arrays: Arrays, *, gradient: bool) -> mx.array:
        """Summed log-probability of every response [K*P], float32 nats."""
        tokens = self.token_logps(arrays, gradient=gradient)
        return sum_by_owner(tokens, arrays["owner"], arrays["lengths"].shape[0])

    def scores(self, arrays: Arrays, *, gradient: bool) -> dict[str, mx.array]:
        """What a loss reads of every response, float32 [K*P] each.

        `logps`: summed log-probability, nats; where the pass splits responses, `public`: the same over the
        tokens that `batch_arrays` marks so; where it aligns, `alignment`: the mean over the tokens of
        ln p(token) - ln sum_v p_v^2, nats, without gradient.
        """
        hidden = self.hidden(arrays)
        logps, *collisions = token_scores(
            self.head,
            hidden,
            arrays["targets"],
            chunk=self.chunk(hidden),
            gradient=gradient,
            collisions=self.align,
        )
        weighted = {"logps": logps * arrays["valid"]}
        if self.split:
            weighted["public"] = logps * arrays["public"]
        if self.align:
            share = arrays["valid"] / arrays["lengths"][arrays["owner"]]
            weighted["alignment"] = (mx.stop_gradient(logps) - collisions[0]) * share
        rows = arrays["lengths"].shape[0]
        return {name: sum_by_owner(tokens, arrays["owner"], rows) for name, tokens in weighted.items()}

    def measure(self, batch: Batch) -> dict[str, mx.array]:
        """`scores` of a batch, evaluated, with the weights that are in the model now.

        Never traced: the batches of evaluations have many shapes, and MLX keeps a trace of each for ever.
        """
        found = self.scores(batch_arrays(batch, shared=self.shared), gradient=False)
        mx.eval(found)
        return found

    def score(self, batch: Batch) -> mx.array:
        """`logps` of a batch, evaluated, with the weights that are in the model now."""
        return self.measure(batch)["logps"]

    def chunk(self, hidden: mx.array) -> int:
        """Tokens whose logits may be alive at once."""
        if self._vocabulary is None:
            self._vocabulary = self.head(hidden[:1]).shape[-1]
        return chunk_size(self._vocabulary, self._chunk_bytes)


def sum_by_owner(values: mx.array, owner: mx.array, rows: int) -> mx.array:
    """Sums of `values` [T] over the tokens of each response [rows].

    Masked sums: a scatter adds in any order on a GPU, and a matrix product may round there to 10 bits.
    """
    owned = owner[None] == mx.arange(rows, dtype=owner.dtype)[:, None]
    return mx.where(owned, values[None], 0.0).sum(axis=1)
