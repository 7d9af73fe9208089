"""The order of batches and their padded arrays: pure functions of (seed, step) and of the rows.

A resumed run needs no loader state: step k of seed s is the same batch in every run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localdpo.data.types import Batch, EncodedRow

# (up to this width, round up to a multiple of this). MLX reuses freed buffers of much the same size, so
# widths are few: 8 + 12 + 8 = 28 up to 1,024. The multiples grow with the width to hold the mean waste of a
# row, half a multiple, near a tenth: 8/96, 16/320, 32/768. Below 48 tokens the share is larger and the cost
# is nothing.
_BUCKETS = ((128, 16), (512, 32), (1024, 64))
_LARGEST_MULTIPLE = 128


def steps_per_epoch(n: int, batch_size: int) -> int:
    """Batches in one pass over n rows, a ragged last one counted."""
    if n < 1 or batch_size < 1:
        raise ValueError(f"steps_per_epoch needs n >= 1 and batch_size >= 1, got {n} and {batch_size}")
    return -(-n // batch_size)


@lru_cache(maxsize=4)
def _order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, epoch])))
    order = generator.permutation(n).astype(np.int64)
    order.setflags(write=False)
    return order


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A permutation int64[n] of range(n), pure in its arguments (seed and epoch >= 0). Read-only."""
    if n < 1 or seed < 0 or epoch < 0:
        raise ValueError(f"epoch_order needs n >= 1, seed >= 0, epoch >= 0, got {n}, {seed}, {epoch}")
    return _order(n, seed, epoch)


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
    """Places int64[rows_per_epoch] of the rows that an epoch takes, sorted; those of the first data set come
    first.

    A data set's rows stand in a circle, in an order that the seed decides once, and every epoch takes the
    next `weight` of a turn: each row floor(weight) or ceil(weight) times, and all rows equally often in the
    long run. Weights of 1 take every row once. Pure in its arguments. Read-only.
    """
    places, before = [], 0
    for number, (n, weight) in enumerate(zip(counts, weights, strict=True)):
        taken = _taken(n, weight)
        # The last 1 keeps this seed apart from those of `epoch_order`.
        generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, number, 1])))
        turn = (epoch * taken + np.arange(taken, dtype=np.int64)) % max(1, n)
        places.append(before + np.sort(generator.permutation(n)[turn]))
        before += n
    found = np.concatenate(places).astype(np.int64)
    found.setflags(write=False)
    return found


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

    `lengths[i]` is the token count of row `indices[i]`. Rows are sorted longest first, so that padding is
    small and the largest shape comes first: a run that does not fit in memory shows it at once. Their union
    is the batch; the last micro-batch may be ragged.
    """
    index_array = np.asarray(indices, dtype=np.int64)
    length_array = np.asarray(lengths)
    if micro_batch_size < 1 or index_array.ndim != 1 or index_array.shape != length_array.shape:
        raise ValueError("split_micro needs micro_batch_size >= 1 and one length per index")
    ordered = index_array[np.argsort(-length_array.astype(np.int64), kind="stable")]
    return [ordered[start : start + micro_batch_size] for start in range(0, len(ordered), micro_batch_size)]


def bucket(width: int) -> int:
    """The padded width for `width` columns: the next of few distinct values, at least 16."""
    if width < 0:
        raise ValueError(f"bucket needs width >= 0, got {width}")
    for limit, multiple in _BUCKETS:
        if width <= limit:
            return max(1, -(-width // multiple)) * multiple
    return -(-width // _LARGEST_MULTIPLE) * _LARGEST_MULTIPLE


def collate(rows: Sequence[EncodedRow], pad_id: int, indices: ArrayLike) -> Batch:
    """Pad `rows` to the longest of them, as a `Batch`; `indices` are their places in the store, int[P].

    The pad id never reaches a result: `context_pad` and `lengths` say which columns are real.
    """
    index_array = np.asarray(indices, dtype=np.int64)
    if not rows or index_array.shape != (len(rows),):
        raise ValueError(f"collate needs rows and one index per row, got {len(rows)} and {index_array.shape}")
    branches = len(rows[0].responses)
    if any(len(row.responses) != branches or len(row.prompt) < 1 for row in rows):
        raise ValueError("collate needs rows of one kind, each with a prompt of at least one token")
    context, context_pad = _left_pad([row.prompt[:-1] for row in rows], pad_id)
    starts = [row.prompt[-1:] for row in rows]
    responses = [row.responses[k] for k in range(branches) for row in rows]
    lengths = np.array([len(ids) for ids in responses], dtype=np.int32)
    response = np.full((len(responses), int(lengths.max()) + 1), pad_id, dtype=np.int32)
    for r, ids in enumerate(responses):
        response[r, :1] = starts[r % len(rows)]
        response[r, 1 : 1 + len(ids)] = ids
    return Batch(index_array, context, context_pad, response, lengths, _labels(rows))


def _labels(rows: Sequence[EncodedRow]) -> NDArray[np.bool_] | None:
    """The labels of unpaired rows, bool[P]; None for rows of other kinds."""
    labels = [row.desirable for row in rows]
    if len({label is None for label in labels}) != 1:
        raise ValueError("collate needs rows of one kind: all of them with a label, or none")
    return None if labels[0] is None else np.array(labels, dtype=np.bool_)


def _left_pad(
    contexts: Sequence[NDArray[np.int32]], pad_id: int
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    width = max(len(ids) for ids in contexts)
    padded = np.full((len(contexts), width), pad_id, dtype=np.int32)
    pads = np.array([width - len(ids) for ids in contexts], dtype=np.int32)
    for i, ids in enumerate(contexts):
        padded[i, pads[i] :] = ids
    return padded, pads
