"""What a chart is made of: its series, the values it compares with, and how it is looked at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["line", "dashed", "dotted", "points"]


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
