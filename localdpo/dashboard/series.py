"""One metric over the steps of a run as two growing arrays, and what a chart is made of."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

Kind = Literal["line", "dashed", "dotted", "points"]
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


@dataclass(frozen=True)
class ChartSeries:
    """One series of a chart.

    Attributes:
        name: for the legend.
        steps, values: [n], sorted by step; what is not finite is a gap.
        style: a colour of picture.COLOURS: `ink`, `chosen`, `rejected`, ...
        kind: how it is drawn: a line (line, dashed, dotted) or marks (points).
        band: whether the range of the values is shown behind the line.
        line: the moving average [n]; None: the values themselves.
    """

    name: str
    steps: np.ndarray
    values: np.ndarray
    style: str = "chosen"
    kind: Kind = "line"
    band: bool = False
    line: np.ndarray | None = None

    @property
    def drawn(self) -> np.ndarray:
        """What the line goes through [n]."""
        return self.values if self.line is None else self.line

    @property
    def newest(self) -> float | None:
        """The newest finite value of what is drawn, None without one."""
        known = np.flatnonzero(np.isfinite(self.drawn[-256:]))
        if not len(known):
            known = np.flatnonzero(np.isfinite(self.drawn))
            return float(self.drawn[known[-1]]) if len(known) else None
        return float(self.drawn[-256:][known[-1]])

    def at(self, step: float) -> float | None:
        """The value at `step` or the newest one before; None before the first, and in a gap."""
        place = int(np.searchsorted(self.steps, step, side="right")) - 1
        return float(self.values[place]) if place >= 0 and np.isfinite(self.values[place]) else None


@dataclass(frozen=True)
class Reference:
    """A value to compare with, drawn across the chart: 0.5, ln 2, 0."""

    value: float
    label: str = ""


@dataclass(frozen=True)
class Face:
    """What a chart shows besides its series.

    Attributes:
        titles: the same title from long to short; the longest that fits is taken.
        window: (left, right) edge in steps.
        references: drawn where they lie within the scale; they do not widen it by more than half.
        log: logarithmic scale, for values above 0.
        cursor: step of the cross-hair.
        ascii: no character beyond ASCII. shade: bands as characters, where tints would not be seen.
        chosen: whether the frame is marked as the one that keys work on.
    """

    titles: tuple[str, ...]
    window: tuple[float, float]
    references: tuple[Reference, ...] = ()
    log: bool = False
    cursor: float | None = None
    ascii: bool = False
    shade: bool = False
    chosen: bool = False
