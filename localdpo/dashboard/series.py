"""One metric over the steps of a run, as two growing arrays."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from typing import Final

import numpy as np

# The type code of steps: four bytes, since a series of each metric is kept for all of a run.
STEPS: Final = "I"


class Series:
    """Points (step, value) in the order of their steps. NaN is a gap: a value that was not finite.

    Attributes:
        version: grows with every change, so that what was drawn from it can be kept until then.
        cuts: how often points were dropped; while it stays, a newer version only has more points.
    """

    __slots__ = ("_steps", "_values", "cuts", "version")

    def __init__(self) -> None:
        self._steps = array(STEPS)
        self._values = array("d")
        self.version = 0
        self.cuts = 0

    def __len__(self) -> int:
        return len(self._steps)

    def append(self, step: int, value: float | None) -> None:
        """Add a point; None, as the log writes what is not finite, becomes NaN."""
        self._steps.append(step)
        self._values.append(math.nan if value is None else value)
        self.version += 1

    def extend(self, steps: array[int], values: array[float]) -> None:
        """Add points, as many steps (STEPS) as values ("d"); far cheaper than a call for each."""
        self._steps.extend(steps)
        self._values.extend(values)
        self.version += 1

    def truncate(self, step: int) -> None:
        """Drop the points after `step`: a resumed run takes those steps again."""
        keep = bisect_right(self._steps, step)
        if keep < len(self._steps):
            del self._steps[keep:]
            del self._values[keep:]
            self.version += 1
            self.cuts += 1

    @property
    def steps(self) -> np.ndarray:
        """int64 [n], a copy."""
        return np.array(self._steps, dtype=np.int64)

    @property
    def values(self) -> np.ndarray:
        """float64 [n], a copy."""
        return np.array(self._values, dtype=np.float64)

    @property
    def last(self) -> float | None:
        """The newest finite value, None if there is none."""
        for value in reversed(self._values):
            if math.isfinite(value):
                return value
        return None

    @property
    def last_step(self) -> int:
        """The step of the newest point, 0 without any."""
        return self._steps[-1] if self._steps else 0

    def at(self, step: int) -> float | None:
        """The value at `step` or the newest one before it; None before the first point and in a gap."""
        place = bisect_right(self._steps, step) - 1
        if place < 0:
            return None
        value = self._values[place]
        return value if math.isfinite(value) else None
