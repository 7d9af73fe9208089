"""The axes of a chart: which steps and values it spans, their columns and rows, ticks, numbers. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

# A range that is this many times that of the inner 96% of the columns is cut down to it: one spike would
# flatten all else.
_OUTLIER: Final = 4.0
_INNER: Final = (0.02, 0.98)
# Below it, differences and their parts are no numbers of full precision; all of it is drawn as zero.
_SMALLEST: Final = 1e-300
# The right edge of a growing run moves in jumps of this share: between two of them no column changes but the
# last, so that a frame differs little from the one before.
_GROWTH: Final = 1.04
_ZOOM: Final = 2.0
_FEWEST_STEPS: Final = 4.0


# --- steps ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StepView:
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

    def zoomed(self, closer: bool, first: float, last: float, around: float | None = None) -> StepView:
        """Half or twice as many steps; `around`, where given, stays where it is."""
        left, right = self.window(first, last)
        factor = 1 / _ZOOM if closer else _ZOOM
        span = max((right - left) * factor, min(_FEWEST_STEPS, last - first))
        if span >= last - first:
            return StepView()
        share = 1.0 if around is None else (right - min(max(around, left), right)) / (right - left)
        end = right if around is None else around + span * share
        return replace(self, span=span, end=None if around is None and self.end is None else end)._within_run(
            first, last
        )

    def panned(self, share: float, first: float, last: float) -> StepView:
        """Moved by a share of what is seen, to the right if positive."""
        if self.span is None:
            return self
        left, right = self.window(first, last)
        return replace(self, end=right + share * (right - left))._within_run(first, last)

    def _within_run(self, first: float, last: float) -> StepView:
        """Moved back into the run; a view that reaches its end follows it."""
        if self.span is None or self.end is None or self.end >= last:
            return replace(self, end=None)
        return replace(self, end=max(self.end, min(first + self.span, last)))


def right_edge(last: float, total: float | None, span: float | None = None) -> float:
    """The right edge for a run that is at step `last` of `total` and still running.

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

    def bounds(self, steps: np.ndarray) -> np.ndarray:
        """Indices [c + 1] into sorted `steps` [n]: column k holds the points bounds[k] to bounds[k + 1]."""
        edges = self.left + np.arange(self.columns + 1) * ((self.right - self.left) / self.columns)
        bounds = np.searchsorted(steps, edges, side="left")
        bounds[-1] = np.searchsorted(steps, self.right, side="right")
        return bounds

    def column(self, step: float) -> int | None:
        """The column of a step, None outside."""
        if not self.left <= step <= self.right:
            return None
        share = (step - self.left) / (self.right - self.left)
        return min(int(share * self.columns), self.columns - 1)

    def step(self, column: int) -> float:
        """The step in the middle of a column."""
        return self.left + (column + 0.5) / self.columns * (self.right - self.left)


# --- values ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` (low < high; both > 0 if `log`) on `rows` rows, row 0 on top."""

    low: float
    high: float
    rows: int
    log: bool = False

    def offsets(self, values: np.ndarray) -> np.ndarray:
        """The distance from the upper edge in rows, with fractions; NaN for what the scale cannot show."""
        low, high = self.low, self.high
        if self.log:
            values = np.log(np.where(values > 0, values, np.nan))
            low, high = math.log(low), math.log(high)
        # Halves, so that the distance of two huge numbers is finite.
        return (high / 2 - values / 2) / (high / 2 - low / 2) * self.rows

    def rows_of(self, values: np.ndarray) -> np.ndarray:
        """The rows of `values` [n], int64 [n]; -1 outside and for what is not finite."""
        offsets = self.offsets(np.where(np.isfinite(values), values, np.nan))
        slack = 1e-9 * self.rows  # the limits themselves are inside, whatever rounding makes of them
        is_inside = (offsets >= -slack) & (offsets <= self.rows + slack)
        rows = np.clip(np.where(is_inside, offsets, 0.0), 0, self.rows - 1).astype(np.int64)
        return np.where(is_inside, rows, -1)

    def row(self, value: float) -> int | None:
        """The row of a value, None outside."""
        row = int(self.rows_of(np.array([value]))[0])
        return row if row >= 0 else None


def limits(
    must: list[np.ndarray], bands: list[np.ndarray], log: bool = False, ticks: int = 4
) -> tuple[float, float]:
    """(low, high) of a scale: all of `must`, and of `bands` what does not flatten the rest. low < high.

    Rounded outwards to a quarter of the distance of two ticks, so that they stay while the data grows.
    """
    firm, soft = _drawable(must, log), _drawable(bands, log)
    both = np.concatenate([firm, soft])
    if not len(both):
        return (0.1, 1.0) if log else (0.0, 1.0)
    low, high = float(both.min()), float(both.max())
    if len(soft):
        order = np.sort(soft)
        inner = np.append(firm, order[[round(share * (len(order) - 1)) for share in _INNER]])
        if high / 2 - low / 2 > _OUTLIER * (inner.max() / 2 - inner.min() / 2) > 0:
            low, high = float(inner.min()), float(inner.max())
    if log:
        return (low, high) if high > low * 1.01 else (low / 1.5, high * 1.5)
    largest = max(abs(low), abs(high))
    if largest < _SMALLEST:
        return min(low, 0.0), 1.0
    if high - low <= 1e-9 * largest:
        low, high = low - largest * 0.1, high + largest * 0.1
    grid = _tick_distance(low, high, ticks) / 4
    if not math.isfinite(high / grid) or not math.isfinite(low / grid):
        return low, high
    return math.floor(low / grid + 1e-6) * grid, math.ceil(high / grid - 1e-6) * grid


def _drawable(arrays: list[np.ndarray], log: bool) -> np.ndarray:
    values = np.concatenate([*arrays, np.empty(0)])
    # Far beyond what a metric can be, and near where sums of floats overflow.
    return values[np.isfinite(values) & (np.abs(values) < 1e307) & ((values > 1e-300) | (not log))]


def _tick_distance(low: float, high: float, count: int) -> float:
    """1, 2, 2.5 or 5 times a power of ten, for about `count` ticks."""
    rough = max((high / 2 - low / 2) / max(count, 1) * 2, 5e-324)
    power = 10.0 ** math.floor(math.log10(rough))
    if power == 0.0 or not math.isfinite(rough / power):
        return rough
    return next((size * power for size in (1.0, 2.0, 2.5, 5.0) if size * power >= rough * 0.999), 10 * power)


def ticks(low: float, high: float, count: int, log: bool = False) -> list[tuple[float, str]]:
    """(value, label) of about `count` round values from `low` to `high`, ascending."""
    if log:
        return _log_ticks(low, high, count)
    distance = _tick_distance(low, high, count)
    first, last = math.ceil(low / distance - 1e-6), math.floor(high / distance + 1e-6)
    if not 0 <= last - first <= 4 * count + 8:
        return [(low, short(low)), (high, short(high))]
    values = [index * distance for index in range(first, last + 1)]
    digits = max(0, -math.floor(math.log10(distance) + 1e-9))
    if round(distance, digits) != distance:
        digits += 1
    is_plain = distance >= 1e-4 and max(abs(low), abs(high)) < 1e4
    return [(value, f"{value:.{digits}f}" if is_plain else short(value)) for value in values]


def _log_ticks(low: float, high: float, count: int) -> list[tuple[float, str]]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    every = max(1, -(-(last - first) // max(count, 1)))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    values = [factor * 10.0**power for power in range(first, last + 1, every) for factor in factors]
    inside = [value for value in values if low * 0.999 <= value <= high * 1.001]
    return [(value, short(value)) for value in inside or [low, high]]


def short(value: float) -> str:
    """A number in about three digits: `0.83`, `-0.112`, `1.2k`, `20k`, `5e-06`; `-` if it is not finite."""
    if not math.isfinite(value):
        return "-"
    size = abs(value)
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if unit <= size < 1e12:
            return f"{value / unit:.3g}{letter}" if size / unit < 999.5 else f"{value:.2g}"
    return f"{value:.3g}" if size >= 1e-3 or size == 0 else f"{value:.2g}"


def short_step(step: float) -> str:
    """A step for an axis: `0`, `950`, `1,204`, `12.5k`."""
    whole = round(step)
    return f"{whole:,}" if abs(whole) < 10_000 else short(whole)
