"""The value axis of a chart: what it spans, its rows, its ticks, how its numbers read. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

# A range that is this many times that of the inner 96% of the columns is cut down to it: one spike would
# flatten all else.
_OUTLIER: Final = 4.0
_INNER: Final = (0.02, 0.98)


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` (low < high; both > 0 if `log`) on `rows` rows, row 0 on top."""

    low: float
    high: float
    rows: int
    log: bool = False

    def place(self, values: np.ndarray) -> np.ndarray:
        """Where on the rows, as fractions of a row: 0 is the upper edge; NaN for what a scale cannot show."""
        low, high = self.low, self.high
        if self.log:
            values = np.log(np.where(values > 0, values, np.nan))
            low, high = math.log(low), math.log(high)
        # Halves, so that the distance of two huge numbers is finite.
        return (high / 2 - values / 2) / (high / 2 - low / 2) * self.rows

    def rows_of(self, values: np.ndarray) -> np.ndarray:
        """The rows of `values` [n], int64 [n]; -1 outside and for what is not finite."""
        places = self.place(np.where(np.isfinite(values), values, np.nan))
        slack = 1e-9 * self.rows  # the limits themselves are inside, whatever rounding makes of them
        is_inside = (places >= -slack) & (places <= self.rows + slack)
        rows = np.clip(np.where(is_inside, places, 0.0), 0, self.rows - 1).astype(np.int64)
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
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-300):
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
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
    values = [place * distance for place in range(first, last + 1)]
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
