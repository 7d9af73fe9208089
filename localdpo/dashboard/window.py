"""The step axis of a chart: which steps are seen, in which columns, and what zooming does to them. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

# The right edge of a growing run moves in steps of this share: between two of them no column changes but the
# last, so that a frame differs little from the one before.
_GROWTH: Final = 1.04
_ZOOM: Final = 2.0
_FEWEST_STEPS: Final = 4.0


@dataclass(frozen=True)
class View:
    """Which steps are seen.

    Attributes:
        span: how many; None: the whole run.
        end: the last of them; None: the newest, also when more come.
    """

    span: float | None = None
    end: float | None = None

    def window(self, first: float, last: float) -> tuple[float, float]:
        """(left, right) edge in steps, left < right, of data that goes from `first` to `last`."""
        last = max(last, first + 1.0)
        if self.span is None:
            return first, last
        right = last if self.end is None else min(max(self.end, first + 1.0), last)
        return max(first, right - self.span), right

    def zoomed(self, closer: bool, first: float, last: float, around: float | None = None) -> View:
        """Half or twice as many steps; `around`, where given, stays where it is."""
        left, right = self.window(first, last)
        factor = 1 / _ZOOM if closer else _ZOOM
        span = max((right - left) * factor, min(_FEWEST_STEPS, last - first))
        if span >= last - first:
            return View()
        share = 1.0 if around is None else (right - min(max(around, left), right)) / (right - left)
        end = right if around is None else around + span * share
        return replace(self, span=span, end=None if around is None and self.end is None else end)._held(
            first, last
        )

    def panned(self, share: float, first: float, last: float) -> View:
        """Moved by a share of what is seen, to the right if positive."""
        if self.span is None:
            return self
        left, right = self.window(first, last)
        return replace(self, end=right + share * (right - left))._held(first, last)

    def _held(self, first: float, last: float) -> View:
        """Within the run; whoever reaches its end follows it."""
        if self.span is None or self.end is None or self.end >= last:
            return replace(self, end=None)
        return replace(self, end=max(self.end, min(first + self.span, last)))


def right_edge(last: float, total: float | None, span: float | None = None) -> float:
    """The right edge of a run that has come to step `last` of `total` and goes on.

    `span`: how many steps are seen, None for all. The edge moves in small jumps, at most 4% of what is seen.
    """
    if last < 1:
        return last
    if span is not None:
        jump = span * (_GROWTH - 1)
        edge = math.ceil(last / jump - 1e-9) * jump
    else:
        edge = _GROWTH ** math.ceil(math.log(last) / math.log(_GROWTH) - 1e-9)
    return max(last, min(edge, total)) if total is not None and total >= last else max(last, edge)


@dataclass(frozen=True)
class Axis:
    """Columns of equal width over the steps from `left` to `right`, left < right."""

    left: float
    right: float
    columns: int

    def places(self, steps: np.ndarray) -> np.ndarray:
        """Indices [c + 1] into sorted `steps` [n]: column k holds the points places[k] to places[k + 1]."""
        edges = self.left + np.arange(self.columns + 1) * ((self.right - self.left) / self.columns)
        places = np.searchsorted(steps, edges, side="left")
        places[-1] = np.searchsorted(steps, self.right, side="right")
        return places

    def column(self, step: float) -> int | None:
        """The column of a step, None outside."""
        if not self.left <= step <= self.right:
            return None
        share = (step - self.left) / (self.right - self.left)
        return min(int(share * self.columns), self.columns - 1)

    def step(self, column: int) -> float:
        """The step in the middle of a column."""
        return self.left + (column + 0.5) / self.columns * (self.right - self.left)
