"""Numbers of all pairs of a data set, gathered chunk by chunk, and their summaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Column:
    """One number for each pair, grown chunk by chunk in one buffer."""

    def __init__(self, dtype: Any = np.int64) -> None:
        self._dtype = np.dtype(dtype)
        self._bytes = bytearray()

    def add(self, values: ArrayLike) -> None:
        """The numbers of the next pairs; rows of a table are taken one after the other."""
        self._bytes += np.ascontiguousarray(values, self._dtype).tobytes()

    @property
    def values(self) -> NDArray[Any]:
        """All numbers so far, without a copy. No number can be added while they are in use."""
        return np.frombuffer(self._bytes, self._dtype)


def hashes(values: Sequence[Any]) -> NDArray[np.int64]:
    """int64[N]: Python's own hash of each value, the same within this process only."""
    return np.fromiter((hash(value) for value in values), np.int64, len(values))


def summary(values: NDArray[Any]) -> dict[str, float]:
    """Mean, median, 95th percentile and largest of some counts; zeros for none."""
    if not len(values):
        return {"mean": 0.0, "median": 0.0, "p95": 0.0, "max": 0}
    median, p95 = np.percentile(values, [50, 95])
    mean = round(float(values.mean()), 2)
    return {"mean": mean, "median": float(median), "p95": round(float(p95), 2), "max": int(values.max())}


def difference_histogram(differences: NDArray[Any], bins: int = 9) -> list[dict[str, int]]:
    """`bins` (an odd number) of equal width, the middle one around 0, as {from, to, count}.

    The width is a round number near the spread, so outliers are counted in the outermost bins.
    """
    if not len(differences):
        return []
    spread = max(1.0, float(np.percentile(np.abs(differences), 90)))
    width = _round_up(2 * spread / bins)
    edges = (np.arange(bins + 1) - bins / 2) * width
    inner = np.clip(np.floor((differences - edges[0]) / width), 0, bins - 1).astype(np.int64)
    counts = np.bincount(inner, minlength=bins)
    return [{"from": int(edges[i]), "to": int(edges[i + 1]), "count": int(counts[i])} for i in range(bins)]


def _round_up(value: float) -> int:
    """The next of 2, 4, 10, 20, 40, 100, ...: even, so that half a bin is a whole number."""
    scale = 1
    while True:
        for step in (2, 4, 10):
            if step * scale >= value:
                return step * scale
        scale *= 10


def share(count: int, total: int) -> float:
    """count / total, 0 for nothing."""
    return count / total if total else 0.0
