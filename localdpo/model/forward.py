"""From a batch of token ids to the log-probability of each response.

Two paths with one result: the prompt shared by its responses, in one line of tokens (see `packed`), and the
plain path that runs prompt and response of each row as one sequence, for models whose layers keep a state
that cannot be shared. Both gather the hidden states of scored positions before the head sees them.

Shape legend: P rows of the batch (pairs), K responses a row, N = K*P responses (of each row the first,
then of each row the second), S tokens of the line, L sequence width of the plain path, T scored tokens of the
batch, D hidden size. S, L and T may be padded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from localdpo.data.batches import Shape, bucket
from localdpo.data.types import Batch
from localdpo.model.backend import device_name
from localdpo.model.head import CHUNK_BYTES, Head, chunk_size, text_model, token_scores
from localdpo.model.lanes import lane_count, side_by_side
from localdpo.model.packed import (
    CONTEXT,
    PADDING,
    Segment,
    can_share,
    checkpointed_layers,
    line_hidden,
    segments_for_attention,
    take_positions,
)
from localdpo.objective.scores import ResponseScores


@dataclass(frozen=True, kw_only=True)
class ForwardArrays:
    """What a forward pass takes of a batch.

    Attributes:
        gather_T: indices of the scored positions in the flattened hidden states.
        targets_T: the tokens that these positions should predict; owner_T: the response of each.
        valid_T: 1.0, or 0.0 for padding of T.
        public_T: 1.0 for the tokens of a response within the length of its row's shortest one, else 0.0.
        responses_N: the response whose sums each place of [N] has: its own, or that of the batch's first row
            where a line has more places than rows.
        lengths_N: scored tokens of these responses.
        line_4S: the line of the shared path (see `packed.LineCache`).
        tokens_NL: inputs of the plain path.
        segments: of a line whose attention is computed by segments; lost in `tree`, and so in a trace.
    """

    gather_T: mx.array
    targets_T: mx.array
    owner_T: mx.array
    valid_T: mx.array
    public_T: mx.array
    responses_N: mx.array
    lengths_N: mx.array
    line_4S: mx.array | None = None
    tokens_NL: mx.array | None = None
    segments: tuple[Segment, ...] = ()

    def tree(self) -> dict[str, Any]:
        """The arrays that are there by field: what `mx.compile` takes, which knows no dataclasses."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if isinstance(value, mx.array)}


def filled(rows: int, places: int) -> np.ndarray:
    """The row that each place of a micro-batch has, int64[places]: the first row where there is no other."""
    return np.where(np.arange(places) < rows, np.arange(places), 0)


def needed_shape(batch: Batch, *, shared: bool) -> Shape:
    """The sizes that the arrays of a batch have at least."""
    contexts_P, lengths_KP = lengths_of(batch)
    rows, scored = len(contexts_P), int(lengths_KP.sum())
    width = int(contexts_P.sum()) + scored if shared else int((contexts_P + lengths_KP).max())
    return Shape(rows, width, scored)


def batch_arrays(batch: Batch, *, shared: bool, shape: Shape | None = None) -> ForwardArrays:
    """The arrays of a batch on the shared path or the plain one.

    `shape`: that they are padded to, for a traced step; a line may have places for more rows. Without it
    nothing is padded but the sequences of the plain path, to one of few widths.
    """
    segments: tuple[Segment, ...] = ()
    if shape is None:
        shape = needed_shape(batch, shared=shared)
        if shared:
            segments = segments_for_attention(*lengths_of(batch))
        else:
            shape = Shape(shape.rows, bucket(shape.width), shape.scored)
    inputs, starts_N = _line(batch, shape) if shared else _sequences(batch, shape)
    arrays = {**inputs, **_scored(batch, starts_N, shape)}
    return ForwardArrays(**{name: mx.array(value) for name, value in arrays.items()}, segments=segments)


def lengths_of(batch: Batch) -> tuple[np.ndarray, np.ndarray]:
    """(context tokens of each row [P], tokens of its responses [K, P])."""
    return batch.context.shape[1] - batch.context_pad, batch.lengths.reshape(-1, len(batch.indices))


def _line(batch: Batch, shape: Shape) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """`line_4S`, and the column at which each response begins [N]."""
    contexts_P, lengths_KP = lengths_of(batch)
    rows_N, lengths_N = np.tile(np.arange(len(contexts_P)), len(lengths_KP)), batch.lengths
    contexts = [ids[pad:] for ids, pad in zip(batch.context, batch.context_pad, strict=True)]
    responses = [ids[:length] for ids, length in zip(batch.response, lengths_N, strict=True)]
    positions = [np.arange(n) for n in contexts_P]
    positions += [contexts_P[row] + np.arange(n) for row, n in zip(rows_N, lengths_N, strict=True)]
    branches = np.concatenate([np.full(len(contexts_P), CONTEXT), np.arange(len(lengths_N))])
    each = np.concatenate([contexts_P, lengths_N])
    line = [
        (np.concatenate([*contexts, *responses]), 0),
        (np.concatenate(positions), 0),
        (np.repeat(np.concatenate([np.arange(len(contexts_P)), rows_N]), each), PADDING),
        (np.repeat(branches, each), CONTEXT),
    ]
    rest = shape.width - int(each.sum())
    line_4S = np.stack([np.pad(values, (0, rest), constant_values=fill) for values, fill in line])
    return {"line_4S": line_4S.astype(np.int32)}, int(contexts_P.sum()) + np.cumsum(lengths_N) - lengths_N


def _sequences(batch: Batch, shape: Shape) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The sequences of the plain path, and where each response begins in them once they are flattened [N]."""
    pairs = len(batch.indices)
    tokens_NL = np.zeros((len(batch.lengths), shape.width), dtype=np.int32)
    for row, length in enumerate(batch.lengths):
        pair = row % pairs
        ids = np.concatenate([batch.context[pair, batch.context_pad[pair] :], batch.response[row, :length]])
        tokens_NL[row, : len(ids)] = ids
    contexts_N = np.tile(batch.context.shape[1] - batch.context_pad, len(batch.lengths) // pairs)
    return {"tokens_NL": tokens_NL}, np.arange(len(tokens_NL)) * shape.width + contexts_N


def _scored(batch: Batch, starts_N: np.ndarray, shape: Shape) -> dict[str, np.ndarray]:
    """Where the scored positions lie, and what they should predict, padded to T."""
    rows = len(batch.indices)
    lengths_KP, places_P = batch.lengths.reshape(-1, rows), filled(rows, shape.rows)
    owner_T = np.repeat(np.arange(len(batch.lengths), dtype=np.int32), batch.lengths)
    column_T = np.concatenate([np.arange(n, dtype=np.int32) for n in batch.lengths])
    # Places of the responses: of each row the first, then of each row the second.
    first_K1 = np.arange(len(lengths_KP))[:, None] * shape.rows
    own_N = (first_K1 + np.arange(rows)).reshape(-1)
    shortest_N = np.tile(lengths_KP.min(axis=0), len(lengths_KP))

    def padded(values_T: np.ndarray, dtype: type) -> np.ndarray:
        return np.pad(values_T, (0, shape.scored - len(values_T))).astype(dtype)

    return {
        "gather_T": padded(starts_N[owner_T] + column_T, np.int32),
        "targets_T": padded(batch.response[owner_T, column_T + 1], np.int32),
        "owner_T": padded(own_N[owner_T], np.int32),
        "valid_T": padded(np.ones(len(owner_T)), np.float32),
        "public_T": padded(column_T < shortest_N[owner_T], np.float32),
        "responses_N": (first_K1 + places_P).reshape(-1).astype(np.int32),
        "lengths_N": lengths_KP[:, places_P].reshape(-1),
    }


class Forward:
    """Log-probabilities of responses under a model, by the shared path or the plain one.

    Args:
        shared: which path is taken; `can_share` decides unless given.
        checkpoint: recompute layers in the backward pass.
        cached: whether the plain path fills a cache of keys and values, as generation does: to compare.
        split: whether `scores` has the sums over the public tokens too.
        align: whether `scores` has the alignment too.
        chunk_bytes: of one chunk's logits; the device's default unless given.

    Attributes:
        by_segments: whether the model's attention takes segments; it takes array masks otherwise.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        shared: bool | None = None,
        checkpoint: bool = False,
        cached: bool = False,
        split: bool = False,
        align: bool = False,
        chunk_bytes: int | None = None,
    ) -> None:
        self.model = model
        self.shared = can_share(model) if shared is None else shared
        self.by_segments = True
        if self.shared:
            take_positions(model)
        self.checkpoint, self._cached = checkpoint, cached
        self.split, self.align = split, align
        self.head = Head(model)
        self._chunk_bytes = chunk_bytes or CHUNK_BYTES[device_name()]
        self._vocabulary: int | None = None

    def hidden(self, arrays: ForwardArrays) -> mx.array:
        """Final hidden states of the scored positions [T, D]."""
        if arrays.tokens_NL is not None:
            text = text_model(self.model)
            with checkpointed_layers(text, enabled=self.checkpoint):
                caches = make_prompt_cache(text) if self._cached else None
                states_NLD = text.model(arrays.tokens_NL, cache=caches)
            return states_NLD.reshape(-1, states_NLD.shape[-1])[arrays.gather_T]
        assert arrays.line_4S is not None
        segments = arrays.segments if self.by_segments else ()
        states_SD = line_hidden(self.model, arrays.line_4S, segments, checkpoint=self.checkpoint)
        return states_SD[arrays.gather_T]

    def token_logps(self, arrays: ForwardArrays, *, gradient: bool) -> mx.array:
        """Log-probability of every scored token [T], float32 nats; 0 where `valid_T` is 0."""
        return self._token_scores(arrays, gradient=gradient)[0] * arrays.valid_T

    def logps(self, arrays: ForwardArrays, *, gradient: bool) -> mx.array:
        """Summed log-probability of every response [N], float32 nats."""
        return sum_by_owner(self.token_logps(arrays, gradient=gradient), arrays.owner_T, arrays.responses_N)

    def scores(self, arrays: ForwardArrays, *, gradient: bool) -> ResponseScores:
        """What a loss reads of every response under the model, float32 [N] each.

        The public sums are there where the pass splits responses, the alignment, which carries no gradient,
        where it aligns; a reference never is.
        """
        logps_T, *collisions_T = self._token_scores(arrays, gradient=gradient, collisions=self.align)
        responses_N = arrays.responses_N
        policy_N = sum_by_owner(logps_T * arrays.valid_T, arrays.owner_T, responses_N)
        public_N = alignment_N = None
        if self.split:
            public_N = sum_by_owner(logps_T * arrays.public_T, arrays.owner_T, responses_N)
        if self.align:
            share_T = arrays.valid_T / arrays.lengths_N[arrays.owner_T]
            alignment_T = (mx.stop_gradient(logps_T) - collisions_T[0]) * share_T
            alignment_N = sum_by_owner(alignment_T, arrays.owner_T, responses_N)
        return ResponseScores(
            policy_N, tokens=arrays.lengths_N, policy_public=public_N, alignment=alignment_N
        )

    def _token_scores(self, arrays: ForwardArrays, **wanted: bool) -> list[mx.array]:
        hidden_TD = self.hidden(arrays)
        return token_scores(self.head, hidden_TD, arrays.targets_T, chunk=self.chunk(hidden_TD), **wanted)

    def measure(self, batch: Batch) -> ResponseScores:
        """`measured` of one batch."""
        return next(self.measured([batch]))

    def measured(self, batches: Iterable[Batch]) -> Iterator[ResponseScores]:
        """`scores` of each batch, evaluated, with the weights that are in the model now.

        Never traced: the batches of evaluations have many shapes, and MLX keeps a trace of each for ever.
        """

        def build(batch: Batch) -> dict[str, mx.array]:
            scores = self.scores(batch_arrays(batch, shared=self.shared), gradient=False)
            return dict(scores.arrays())

        for arrays in side_by_side(build, batches, lane_count()):
            yield ResponseScores(**arrays)

    def score(self, batch: Batch) -> mx.array:
        """`logps` of a batch, evaluated, with the weights that are in the model now."""
        return self.measure(batch).policy

    def chunk(self, hidden_TD: mx.array) -> int:
        """Tokens whose logits may be alive at once."""
        if self._vocabulary is None:
            self._vocabulary = self.head(hidden_TD[:1]).shape[-1]
        return chunk_size(self._vocabulary, self._chunk_bytes)


def sum_by_owner(values_T: mx.array, owner_T: mx.array, responses_N: mx.array) -> mx.array:
    """Sums of the values over the tokens of each of these responses [N].

    Masked sums: a scatter adds in any order on a GPU, and a matrix product may round there to 10 bits.
    """
    owned_NT = owner_T[None] == responses_N[:, None]
    return mx.where(owned_NT, values_T[None], 0.0).sum(axis=1)
