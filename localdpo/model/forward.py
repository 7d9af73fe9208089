"""From a batch of token ids to the log-probability of each response.

Two paths with one result: the shared-prompt path (see `shared_prompt`), and the plain path that
runs prompt and response of each row as one sequence, for models whose layers keep a state that
cannot be shared. Both gather the hidden states of scored positions only, packed without padding,
before the head sees them.

Shape legend: P rows of the batch (pairs), K responses a row, N = K*P responses (of each row the first,
then of each row the second), C context width, R response width, L sequence width, T scored tokens of the
batch, D hidden size. All widths are padded ones.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from localdpo.data.batches import Shape, bucket
from localdpo.data.types import Batch
from localdpo.model.backend import device_name
from localdpo.model.head import CHUNK_BYTES, Head, chunk_size, token_logps, token_scores
from localdpo.model.shared_prompt import can_share, plain_hidden, shared_hidden
from localdpo.objective.scores import ResponseScores


@dataclass(frozen=True, kw_only=True)
class ForwardArrays:
    """The arrays that a forward pass takes of a batch.

    Attributes:
        gather_T: indices of the scored positions in the flattened hidden states.
        targets_T: the tokens that these positions should predict; owner_T: the response of each.
        valid_T: 1.0, or 0.0 for padding of T.
        public_T: 1.0 for the tokens of a response within the length of its row's shortest one, else 0.0.
        lengths_N: scored tokens of each response.
        context_PC, pad_P, response_NR: inputs of the shared-prompt path (see `shared_prompt`).
        tokens_NL: inputs of the plain path.
    """

    gather_T: mx.array
    targets_T: mx.array
    owner_T: mx.array
    valid_T: mx.array
    public_T: mx.array
    lengths_N: mx.array
    context_PC: mx.array | None = None
    pad_P: mx.array | None = None
    response_NR: mx.array | None = None
    tokens_NL: mx.array | None = None

    def tree(self) -> dict[str, mx.array]:
        """The arrays that are there by field: what `mx.compile` takes, which knows no dataclasses."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None}


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


def batch_arrays(batch: Batch, *, shared: bool, shape: Shape | None = None) -> ForwardArrays:
    """The arrays of a batch on the shared path or the plain one, padded to `shape`, or to the next of few."""
    if shape is None:
        shape = bucketed_shape(batch, shared=shared)
    context_PC, pad_P, response_NR, starts_N = _inputs(batch, shape)
    inputs = {"tokens_NL": response_NR}
    if shared:
        inputs = {"context_PC": context_PC, "pad_P": pad_P, "response_NR": response_NR}
    arrays = {**inputs, **_packed(batch, starts_N, shape), "lengths_N": batch.lengths}
    return ForwardArrays(**{name: mx.array(value) for name, value in arrays.items()})


def _inputs(batch: Batch, shape: Shape) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(context [P, C], pad [P], response [N, R], starts [N]), int32, of a shape.

    Of a context longer than C the rest is put before the responses, which then begin at `starts`.
    """
    pairs, width = len(batch.indices), shape.context
    context_PC = np.zeros((pairs, width), dtype=np.int32)
    response_NR = np.zeros((len(batch.lengths), shape.response), dtype=np.int32)
    lengths_P = batch.context.shape[1] - batch.context_pad
    kept_P = np.minimum(lengths_P, width)
    for row, length in enumerate(batch.lengths):
        pair = row % pairs
        ids, kept = batch.context[pair, batch.context_pad[pair] :], kept_P[pair]
        context_PC[pair, width - kept :] = ids[:kept]
        sequence = np.concatenate([ids[kept:], batch.response[row, :length]])
        response_NR[row, : len(sequence)] = sequence
    starts_N = np.tile(lengths_P - kept_P, len(batch.lengths) // pairs)
    return context_PC, (width - kept_P).astype(np.int32), response_NR, starts_N


def _packed(batch: Batch, starts_N: np.ndarray, shape: Shape) -> dict[str, np.ndarray]:
    """Where the scored positions lie, packed over the batch and padded to T."""
    owner_T = np.repeat(np.arange(len(batch.lengths), dtype=np.int32), batch.lengths)
    column_T = np.concatenate([np.arange(n, dtype=np.int32) for n in batch.lengths])
    total, pairs = len(owner_T), len(batch.indices)
    shortest_P = batch.lengths.reshape(-1, pairs).min(axis=0)
    shortest_N = np.tile(shortest_P, len(batch.lengths) // pairs)
    ids = {
        "gather_T": owner_T * shape.response + starts_N[owner_T] + column_T,
        "targets_T": batch.response[owner_T, column_T + 1],
        "owner_T": owner_T,
    }
    masks = {"valid_T": np.ones(total), "public_T": column_T < shortest_N[owner_T]}
    typed = [(ids, np.int32), (masks, np.float32)]
    return {
        name: np.pad(value, (0, shape.packed - total)).astype(dtype)
        for arrays, dtype in typed
        for name, value in arrays.items()
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
        split: whether `scores` has the sums over the public tokens too.
        align: whether `scores` has the alignment too.
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

    def hidden(self, arrays: ForwardArrays) -> mx.array:
        """Final hidden states of the scored positions [T, D]."""
        if arrays.tokens_NL is not None:
            states_NLD = plain_hidden(self.model, arrays.tokens_NL, checkpoint=self.checkpoint)
            return states_NLD.reshape(-1, states_NLD.shape[-1])[arrays.gather_T]
        context_PC, pad_P, response_NR = arrays.context_PC, arrays.pad_P, arrays.response_NR
        assert context_PC is not None
        assert pad_P is not None
        assert response_NR is not None
        states_NRD = shared_hidden(self.model, context_PC, pad_P, response_NR, checkpoint=self.checkpoint)
        return states_NRD.reshape(-1, states_NRD.shape[-1])[arrays.gather_T]

    def token_logps(self, arrays: ForwardArrays, *, gradient: bool) -> mx.array:
        """Log-probability of every scored token [T], float32 nats; 0 where `valid_T` is 0."""
        hidden_TD = self.hidden(arrays)
        logps_T = token_logps(
            self.head, hidden_TD, arrays.targets_T, chunk=self.chunk(hidden_TD), gradient=gradient
        )
        return logps_T * arrays.valid_T

    def logps(self, arrays: ForwardArrays, *, gradient: bool) -> mx.array:
        """Summed log-probability of every response [N], float32 nats."""
        logps_T = self.token_logps(arrays, gradient=gradient)
        return sum_by_owner(logps_T, arrays.owner_T, arrays.lengths_N.shape[0])

    def scores(self, arrays: ForwardArrays, *, gradient: bool) -> ResponseScores:
        """What a loss reads of every response under the model, float32 [N] each.

        The public sums are there where the pass splits responses, the alignment, which carries no gradient,
        where it aligns; a reference never is.
        """
        hidden_TD = self.hidden(arrays)
        logps_T, *collisions_T = token_scores(
            self.head,
            hidden_TD,
            arrays.targets_T,
            chunk=self.chunk(hidden_TD),
            gradient=gradient,
            collisions=self.align,
        )
        rows = arrays.lengths_N.shape[0]
        policy_N = sum_by_owner(logps_T * arrays.valid_T, arrays.owner_T, rows)
        public_N = alignment_N = None
        if self.split:
            public_N = sum_by_owner(logps_T * arrays.public_T, arrays.owner_T, rows)
        if self.align:
            share_T = arrays.valid_T / arrays.lengths_N[arrays.owner_T]
            alignment_T = (mx.stop_gradient(logps_T) - collisions_T[0]) * share_T
            alignment_N = sum_by_owner(alignment_T, arrays.owner_T, rows)
        return ResponseScores(
            policy_N, tokens=arrays.lengths_N, policy_public=public_N, alignment=alignment_N
        )

    def measure(self, batch: Batch) -> ResponseScores:
        """`scores` of a batch, evaluated, with the weights that are in the model now.

        Never traced: the batches of evaluations have many shapes, and MLX keeps a trace of each for ever.
        """
        scores = self.scores(batch_arrays(batch, shared=self.shared), gradient=False)
        mx.eval([array for _, array in scores.arrays()])
        return scores

    def score(self, batch: Batch) -> mx.array:
        """`logps` of a batch, evaluated, with the weights that are in the model now."""
        return self.measure(batch).policy

    def chunk(self, hidden_TD: mx.array) -> int:
        """Tokens whose logits may be alive at once."""
        if self._vocabulary is None:
            self._vocabulary = self.head(hidden_TD[:1]).shape[-1]
        return chunk_size(self._vocabulary, self._chunk_bytes)


def sum_by_owner(values_T: mx.array, owner_T: mx.array, rows: int) -> mx.array:
    """Sums of the values over the tokens of each response [rows].

    Masked sums: a scatter adds in any order on a GPU, and a matrix product may round there to 10 bits.
    """
    owned_NT = owner_T[None] == mx.arange(rows, dtype=owner_T.dtype)[:, None]
    return mx.where(owned_NT, values_T[None], 0.0).sum(axis=1)
