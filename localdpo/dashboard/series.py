"""One metric over the steps of a run, as two growing arrays."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Final

import numpy as np

# Room for this much more is made at a time, as a share of what there is: a run's series are kept in full.
_SPARE: Final = 1 / 8


class Series:
    """Points (step, value) in the order of their steps. NaN is a gap: a value that was not finite.

    Attributes:
        version: grows with every change, so that what was drawn from it can be kept until then.
        cuts: how often points were dropped; while it stays, a newer version only has more points.
    """

    __slots__ = ("_count", "_steps", "_values", "cuts", "version")

    def __init__(self) -> None:
        self._steps = np.empty(0, dtype=np.int64)
        self._values = np.empty(0, dtype=np.float64)
        self._count = 0
        self.version = 0
        self.cuts = 0

    def __len__(self) -> int:
        return self._count

    def append(self, step: int, value: float | None) -> None:
        """Add a point; None, as the log writes what is not finite, becomes NaN."""
        self.extend([step], [value])

    def extend(self, steps: Sequence[int] | np.ndarray, values: Sequence[float | None] | np.ndarray) -> None:
        """Add points, as many steps as values; far cheaper than a call for each."""
        end = self._count + len(steps)
        if end > len(self._steps):
            self._make_room(end + int(end * _SPARE))
        self._steps[self._count : end] = steps
        self._values[self._count : end] = values
        self._count = end
        self.version += 1

    def _make_room(self, size: int) -> None:
        """Move the points to arrays of `size`. Views of the old ones stay as they are."""
        steps, values = self.steps, self.values
        self._steps, self._values = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.float64)
        self._steps[: len(steps)], self._values[: len(values)] = steps, values

    def truncate(self, step: int) -> None:
        """Drop the points after `step`: a resumed run takes those steps again."""
        keep = bisect_right(self.steps, step)
        if keep < self._count:
            self._count = keep
            self._make_room(keep)
            self.version += 1
            self.cuts += 1

    @property
    def steps(self) -> np.ndarray:
        """int64 [n], a view that later points do not change."""
        return _view(self._steps, self._count)

    @property
    def values(self) -> np.ndarray:
        """float64 [n], a view that later points do not change."""
        return _view(self._values, self._count)

    @property
    def last(self) -> float | None:
        """The newest finite value, None if there is none."""
        return next((float(value) for value in self.values[::-1] if np.isfinite(value)), None)

    @property
    def last_step(self) -> int:
        """The step of the newest point, 0 without any."""
        return int(self._steps[self._count - 1]) if self._count else 0

    def at(self, step: int) -> float | None:
        """The value at `step` or the newest one before it; None before the first point and in a gap."""
        place = bisect_right(self.steps, step) - 1
        if place < 0:
            return None
        value = float(self._values[place])
        return value if np.isfinite(value) else None


def _view(array: np.ndarray, count: int) -> np.ndarray:
    view = array[:count]
    view.flags.writeable = False
    return view
