"""Batches: their order, their padded arrays, and the few shapes that the arrays of a run are padded to.

All are pure functions of (seed, step) and of the rows: a resumed run needs no loader state, since step k of
seed s is the same batch in every run, and has the same table of shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localdpo.data.types import Batch, EncodedRow

# (up to this width, round up to a multiple of this). MLX reuses freed buffers of much the same size, so
# widths are few: 8 + 12 + 8 = 28 up to 1,024. The multiples grow with the width to hold the mean waste of a
# row, half a multiple, near a tenth: 8/96, 16/320, 32/768. Below 48 tokens the share is larger and the cost
# is nothing.
_BUCKETS = ((128, 16), (512, 32), (1024, 64))
_LARGEST_MULTIPLE = 128
# Widths of a table are multiples of this, and 16 at least: kernels like round sizes, and MLX's attention on a
# GPU takes a way of its own for a few queries.
MULTIPLE, NARROWEST = 8, 16
# Different needs that are merged pair by pair; more are first merged by rounding up.
_MERGED = 400
_ROUNDS = 50


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Batches in one pass over n rows, a ragged last one counted."""
    if n < 1 or batch_size < 1:
        raise ValueError(f"steps_per_epoch needs n >= 1 and batch_size >= 1, got {n} and {batch_size}")
    return -(-n // batch_size)


@lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation int64[n] of range(n), pure in its arguments (seed and epoch >= 0). Read-only."""
    if n < 1 or seed < 0 or epoch < 0:
        raise ValueError(f"epoch_order needs n >= 1, seed >= 0, epoch >= 0, got {n}, {seed}, {epoch}")
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    order = generator.permutation(n).astype(np.int64)
    order.setflags(write=False)
    return order


def rows_per_epoch(counts: Sequence[int], weights: Sequence[float]) -> int:
    """Rows that an epoch takes of data sets with these `counts` of rows and `weights`."""
    return sum(_taken(n, weight) for n, weight in zip(counts, weights, strict=True))


def _taken(n: int, weight: float) -> int:
    """Rows of a data set of n in an epoch: n * weight to the nearest, and one at least if there are any."""
    return max(1, int(n * weight + 0.5)) if n else 0


@lru_cache(maxsize=4)
def epoch_places(
    counts: tuple[int, ...], weights: tuple[float, ...], seed: int, epoch: int
) -> NDArray[np.int64]:
    """Indices int64[rows_per_epoch] of the rows that an epoch takes, sorted: the first data set's come first.

    A data set's rows form a circle, in an order that the seed decides once, and every epoch takes the
    next `weight` of a turn: each row floor(weight) or ceil(weight) times, and all rows equally often in the
    long run. Weights of 1 take every row once. Pure in its arguments. Read-only.
    """
    indices, before = [], 0
    for number, (n, weight) in enumerate(zip(counts, weights, strict=True)):
        taken = _taken(n, weight)
        # The last 1 keeps this seed apart from those of `epoch_order`.
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number, 1])))
        turn = (epoch * taken + np.arange(taken, dtype=np.int64)) % max(1, n)
        indices.append(before + np.sort(generator.permutation(n)[turn]))
        before += n
    taken_rows = np.concatenate(indices).astype(np.int64)
    taken_rows.setflags(write=False)
    return taken_rows


def batch_rows(n: int, batch_size: int, seed: int, step: int) -> NDArray[np.int64]:
    """The row indices int64[<= batch_size] of 0-based `step`, in drawn order.

    Every epoch visits each row once; its last batch is shorter when batch_size does not divide n. With
    n < batch_size each step is the whole data set.
    """
    epoch, position = divmod(step, steps_per_epoch(n, batch_size))
    start = position * batch_size
    return epoch_order(n, seed, epoch)[start : start + batch_size]


def split_micro(indices: ArrayLike, lengths: ArrayLike, micro_batch_size: int) -> list[NDArray[np.int64]]:
    """Cut one batch into micro-batches of at most `micro_batch_size` rows of similar length.

    `lengths[i]` is the token count of row `indices[i]`. Rows are sorted longest first, so that sequences are
    padded little and the largest shape comes first: a run that does not fit in memory shows it at once. Their
    union is the batch; the last micro-batch may be ragged.
    """
    ordered = _longest_first(indices, lengths)
    return [ordered[start : start + micro_batch_size] for start in range(0, len(ordered), micro_batch_size)]


def deal_micro(indices: ArrayLike, lengths: ArrayLike, micro_batch_size: int) -> list[NDArray[np.int64]]:
    """Deal one batch out to micro-batches of at most `micro_batch_size` rows, each with about as many tokens.

    The counterpart of `split_micro` for lines, in which rows of different length do not pad each other.
    Numbers of rows differ by one at most.
    """
    ordered = _longest_first(indices, lengths)
    micro = dealt(len(ordered), micro_batch_size)
    return [ordered[micro == i] for i in range(int(micro.max()) + 1)] if len(ordered) else []


def dealt(rows: int, micro_batch_size: int) -> NDArray[np.int64]:
    """The micro-batch of each of `rows` rows, longest first, int64[rows]: dealt forth and back."""
    return dealt_to(rows, -(-rows // micro_batch_size))


def dealt_to(rows: int, count: int) -> NDArray[np.int64]:
    """Which of `count` shares each of `rows` rows, longest first, goes to, int64[rows]: forth and back."""
    turn, place = np.divmod(np.arange(rows, dtype=np.int64), max(1, count))
    return np.where(turn % 2 == 0, place, count - 1 - place)


def shares(indices: ArrayLike, lengths: ArrayLike, count: int) -> list[NDArray[np.int64]]:
    """The rows of one batch dealt out to `count` ranks, each with about as many tokens; some may get none."""
    ordered = _longest_first(indices, lengths)
    share = dealt_to(len(ordered), count)
    return [ordered[share == i] for i in range(count)]


def pack(lengths: NDArray[np.int64], tokens: int, most: int) -> NDArray[np.int64]:
    """The line of each row of some steps, each row in the first line of its step that has room.

    Args:
        lengths: int64[steps, rows], longest first within a step; 0 where a step has no more rows.
        tokens, most: that a line holds at most, and how many rows. A longer row has a line of its own.

    Returns:
        int64[steps, rows], counted from 0 in each step; for rows that are not there it means nothing.
    """
    steps, rows = lengths.shape
    load, count = np.zeros((2, steps, max(1, rows)), dtype=np.int64)
    line, every, opened = np.zeros_like(lengths), np.arange(steps), 0
    for row in range(rows):
        length = lengths[:, row]
        # Behind the lines that some step has begun, an empty one.
        loads, counts = load[:, : opened + 1], count[:, : opened + 1]
        room = (counts == 0) | ((loads + length[:, None] <= tokens) & (counts < most))
        line[:, row] = taken = room.argmax(axis=1)
        load[every, taken] += length
        count[every, taken] += length > 0
        opened = max(opened, int(taken.max()) + 1)
    return line


def pack_micro(indices: ArrayLike, lengths: ArrayLike, packing: Packing) -> list[NDArray[np.int64]]:
    """Put the rows of one batch into as few lines as `pack` finds, the one with the longest row first."""
    ordered = _longest_first(indices, lengths)
    sizes = np.sort(np.asarray(lengths, dtype=np.int64))[::-1]
    (line,) = pack(sizes[None], packing.tokens, packing.rows)
    return [ordered[line == i] for i in range(int(line.max()) + 1)] if len(ordered) else []


def _longest_first(indices: ArrayLike, lengths: ArrayLike) -> NDArray[np.int64]:
    index_array = np.asarray(indices, dtype=np.int64)
    length_array = np.asarray(lengths)
    if index_array.ndim != 1 or index_array.shape != length_array.shape:
        raise ValueError("expected one length per index")
    return index_array[np.argsort(-length_array.astype(np.int64), kind="stable")]


def bucket(width: int) -> int:
    """The padded width for `width` columns: the next of few distinct values, at least 16."""
    if width < 0:
        raise ValueError(f"bucket needs width >= 0, got {width}")
    for limit, multiple in _BUCKETS:
        if width <= limit:
            return max(1, -(-width // multiple)) * multiple
    return -(-width // _LARGEST_MULTIPLE) * _LARGEST_MULTIPLE


def collate(rows: Sequence[EncodedRow], pad_id: int, indices: ArrayLike) -> Batch:
    """Pad `rows` to the longest of them, as a `Batch`; `indices` are their indices in the store, int[P].

    The pad id never reaches a result: `context_pad` and `lengths` say which columns are real.
    """
    index_array = np.asarray(indices, dtype=np.int64)
    if not rows or index_array.shape != (len(rows),):
        raise ValueError(f"collate needs rows and one index per row, got {len(rows)} and {index_array.shape}")
    branches = len(rows[0].responses)
    if any(len(row.responses) != branches or len(row.prompt) < 1 for row in rows):
        raise ValueError("collate needs rows of one kind, each with a prompt of at least one token")
    width = max(len(row.prompt) for row in rows) - 1
    context = np.full((len(rows), width), pad_id, dtype=np.int32)
    context_pad = np.array([width + 1 - len(row.prompt) for row in rows], dtype=np.int32)
    for i, row in enumerate(rows):
        context[i, context_pad[i] :] = row.prompt[:-1]
    starts = [row.prompt[-1:] for row in rows]
    responses = [row.responses[k] for k in range(branches) for row in rows]
    lengths = np.array([len(ids) for ids in responses], dtype=np.int32)
    response = np.full((len(responses), int(lengths.max()) + 1), pad_id, dtype=np.int32)
    for r, ids in enumerate(responses):
        response[r, :1] = starts[r % len(rows)]
        response[r, 1 : 1 + len(ids)] = ids
    labels = [row.desirable for row in rows]
    if len({label is None for label in labels}) != 1:
        raise ValueError("collate needs rows of one kind: all of them with a label, or none")
    desirable = None if labels[0] is None else np.array(labels, dtype=np.bool_)
    return Batch(index_array, context, context_pad, response, lengths, desirable)


# --- the shapes of a run --------------------------------------------------------------------------------
#
# A trace serves one shape, and MLX keeps every trace, so their number must be bounded. Which rows a step
# takes is known before it begins; so are the sizes that each of its micro-batches needs, and `plan_shapes`
# chooses the table under which they are padded least.
#
# Lines hold as many rows as there is room for, and have places for more: where a row is not there, its place
# has the scores of the first one, and counts nothing. Sequences that share nothing cannot: a place for a row
# would cost its tokens.


@dataclass(frozen=True, order=True)
class Shape:
    """Sizes of a micro-batch's arrays.

    Attributes:
        rows: P.
        width: tokens of the one line of all rows (S), or of each sequence where prompts are not shared (L).
        scored: scored tokens of all responses (T).

    All with padding.
    """

    rows: int
    width: int
    scored: int

    def holds(self, need: Shape) -> bool:
        """Whether a micro-batch that needs these sizes can be padded to this shape."""
        return self.rows == need.rows and self.width >= need.width and self.scored >= need.scored


def columns(shapes: NDArray[np.int64], sequences: int | None) -> NDArray[np.int64]:
    """What is computed for shapes [..., 3]: tokens and scored tokens, with padding.

    `sequences`: of a row, where prompts are not shared; None for lines.
    """
    return _sequences(shapes, sequences) * shapes[..., 1] + shapes[..., 2]


def _sequences(shapes: NDArray[np.int64], sequences: int | None) -> NDArray[np.int64]:
    """Sequences that attend each to itself, of shapes [..., 3]."""
    return np.ones_like(shapes[..., 0]) if sequences is None else shapes[..., 0] * sequences


class Packing(NamedTuple):
    """What a line holds at most: tokens of all its rows (prompts and responses), and rows."""

    tokens: int
    rows: int


@dataclass(frozen=True)
class ShapeTable:
    """The shapes of a run, and what they cost.

    Attributes:
        shapes: by what is computed for one, the cheapest first.
        computed: columns (see `columns`) of all micro-batches that were planned for.
        needed: the same with a shape for every micro-batch.
        real: those of them that hold a token.
        scores: products of a query and a key in each head of a layer, of all micro-batches.
        planned: micro-batches.
        packing: of lines into which rows are packed; None where a micro-batch has a given number of rows.
    """

    shapes: tuple[Shape, ...]
    computed: int
    needed: int
    real: int
    scores: int
    planned: int
    packing: Packing | None = None

    @property
    def padding(self) -> float:
        """Share of what is computed that is padding."""
        return 1.0 - self.real / self.computed

    @property
    def least_padding(self) -> float:
        """The same with a shape for every micro-batch: what rows and responses of different lengths cost."""
        return 1.0 - self.real / self.needed

    def of(self, need: Shape) -> Shape | None:
        """The cheapest shape that holds these sizes; None if there is none."""
        if self.packing is not None:
            need = replace(need, rows=self.packing.rows)
        return next((shape for shape in self.shapes if shape.holds(need)), None)


def plan_shapes(needs: NDArray[np.int64], *, sequences: int | None, real: int, most: int) -> ShapeTable:
    """A table of at most `most` shapes that holds every need, with little padding.

    Needs are merged two by two, those first whose common shape adds the least to what is computed; then each
    need takes the cheapest shape that holds it and every shape shrinks to what it has to hold, until nothing
    changes.

    Args:
        needs: [N, 3], the fields of `Shape` for each micro-batch, N >= 1.
        sequences: see `columns`.
        real: tokens and scored tokens of all micro-batches.

    Raises ValueError: micro-batches of more than `most` different numbers of rows.
    """
    rounded = np.maximum(_round_up(needs, MULTIPLE), NARROWEST)
    rounded[:, 0] = needs[:, 0]
    if len(np.unique(rounded[:, 0])) > most:
        raise ValueError(f"plan_shapes: expected at most {most} different numbers of rows")
    kinds, of = _unique(rounded)
    counts = np.bincount(of)
    shapes = _fit_closely(kinds, _merged(kinds, counts, sequences, most), sequences)
    shapes = shapes[np.lexsort([*shapes.T[::-1], columns(shapes, sequences)])]
    taken, cost = _assign(kinds, shapes, sequences)
    return ShapeTable(
        shapes=tuple(Shape(*(int(size) for size in shapes[i])) for i in np.unique(taken)),
        computed=int((cost * counts).sum()),
        needed=int((columns(kinds, sequences) * counts).sum()),
        real=real,
        scores=int((_sequences(shapes, sequences) * shapes[:, 1] ** 2)[taken] @ counts),
        planned=len(needs),
    )


def _round_up(values: NDArray[np.int64], multiple: int) -> NDArray[np.int64]:
    return -(-values // multiple) * multiple


def _merged(
    kinds: NDArray[np.int64], counts: NDArray[np.int64], sequences: int | None, most: int
) -> NDArray[np.int64]:
    """At most `most` shapes that hold all kinds, by merging the two that add the least again and again."""
    shapes, weights = _grouped(kinds, counts)
    alive = np.ones(len(shapes), dtype=bool)

    def added(i: int) -> NDArray[np.float64]:
        """What merging shape i with each of the others adds to what is computed."""
        own = columns(shapes, sequences)
        both = columns(np.maximum(shapes[i], shapes), sequences) * (weights[i] + weights)
        extra = (both - own[i] * weights[i] - own * weights).astype(np.float64)
        extra[~alive | (shapes[:, 0] != shapes[i, 0])] = np.inf
        extra[i] = np.inf
        return extra

    extra = np.stack([added(i) for i in range(len(shapes))])
    for _ in range(len(shapes) - most):
        i, j = np.unravel_index(np.argmin(extra), extra.shape)
        shapes[i], weights[i], alive[j] = np.maximum(shapes[i], shapes[j]), weights[i] + weights[j], False
        extra[j], extra[:, j] = np.inf, np.inf
        extra[i] = extra[:, i] = added(int(i))
    return shapes[alive]


def _grouped(
    kinds: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At most `_MERGED` shapes that hold the kinds, and the micro-batches of each: by rounding up."""
    multiple, cells = MULTIPLE, kinds
    while True:
        groups, of = _unique(cells)
        if len(groups) <= _MERGED:
            break
        multiple = multiple * 5 // 4
        cells = np.column_stack([kinds[:, 0], _round_up(kinds[:, 1:], multiple)])
    shapes, weights = np.zeros_like(groups), np.zeros(len(groups), dtype=np.int64)
    np.maximum.at(shapes, of, kinds)
    np.add.at(weights, of, counts)
    return shapes, weights


def _unique(sizes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the different rows, sorted; the index of each row among them): a faster np.unique."""
    order = np.lexsort(sizes.T[::-1])
    ordered = sizes[order]
    first = np.append(True, (ordered[1:] != ordered[:-1]).any(axis=1))
    of = np.empty(len(sizes), dtype=np.int64)
    of[order] = np.cumsum(first) - 1
    return ordered[first], of


def _fit_closely(
    kinds: NDArray[np.int64], shapes: NDArray[np.int64], sequences: int | None
) -> NDArray[np.int64]:
    """The shapes shrunk to what they hold, once each kind takes the cheapest one."""
    for _ in range(_ROUNDS):
        taken, _ = _assign(kinds, shapes, sequences)
        closer = np.zeros_like(shapes)
        np.maximum.at(closer, taken, kinds)
        closer = closer[np.unique(taken)]
        if np.array_equal(closer, shapes):
            break
        shapes = closer
    return shapes


def _assign(
    kinds: NDArray[np.int64], shapes: NDArray[np.int64], sequences: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the cheapest shape that holds each kind, what is computed for it); the first of equally cheap ones."""
    never = np.iinfo(np.int64).max
    taken, least = np.zeros(len(kinds), dtype=np.int64), np.full(len(kinds), never)
    for i, (shape, cost) in enumerate(zip(shapes, columns(shapes, sequences), strict=True)):
        holds = (kinds[:, 0] == shape[0]) & (kinds[:, 1:] <= shape[1:]).all(axis=1) & (cost < least)
        taken[holds], least[holds] = i, cost
    return taken, least
