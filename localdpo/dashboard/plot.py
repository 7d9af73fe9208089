"""The arithmetic of a chart: smoothing, columns, lines, dots. NumPy only, nothing of the terminal.

Shapes: n points, c columns. A value that is not finite is a gap: it is never drawn, and no line is drawn
across it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from localdpo.dashboard.axes import Axis, Scale

_BLOCK: Final = 64
_BAND_POINTS: Final = 10
# The dots of a braille cell, counted by rows of two, in the order of Unicode's bits from U+2800 on.
_BRAILLE_ORDER: Final = (0, 2, 4, 1, 3, 5, 6, 7)


def finite(values: np.ndarray) -> np.ndarray:
    """`values` [n] with every infinity as NaN."""
    return np.where(np.isfinite(values), values, np.nan)


def smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """The exponential moving average of `values` [n], [n]: weight * before + (1 - weight) * value.

    Without the pull of the start to zero (divided by 1 - weight^count, as in Adam, Kingma and Ba 2015).
    Gaps stay gaps and do not count. `weight` is from 0 (no smoothing) to below 1.
    """
    is_finite = np.isfinite(values)
    if weight <= 0 or not is_finite.any():
        return finite(values)
    smoothed = np.full(len(values), np.nan)
    smoothed[is_finite] = _average(values[is_finite], weight)
    return smoothed


def smooth_on(before: np.ndarray, values: np.ndarray, weight: float) -> np.ndarray:
    """`smooth(values, weight)` [n], where `before` [k] is that of the first k: only the rest is computed."""
    known = len(before)
    if weight <= 0 or known == 0 or len(values) - known > _BLOCK:
        return smooth(values, weight)
    is_finite = np.isfinite(before)
    count = int(is_finite.sum())
    average = float(before[np.flatnonzero(is_finite)[-1]]) * (1 - weight**count) if count else 0.0
    fresh = np.full(len(values) - known, np.nan)
    for index, value in enumerate(values[known:].tolist()):
        if math.isfinite(value):
            count += 1
            average = weight * average + (1 - weight) * value
            fresh[index] = average / (1 - weight**count)
    return np.concatenate([before, fresh])


def _average(values: np.ndarray, weight: float) -> np.ndarray:
    """The moving average of finite values, in blocks: within one, a running sum of values / weight^index."""
    n = len(values)
    # A sum of huge values must not overflow.
    scale = max(float(values.max()), -float(values.min())) or 1.0
    padded = np.zeros(-(-n // _BLOCK) * _BLOCK)
    padded[:n] = values / scale
    blocks = padded.reshape(-1, _BLOCK)
    powers = weight ** np.arange(1, _BLOCK + 1)
    sums = np.cumsum(blocks * ((1 - weight) / powers), axis=1) * powers
    carried, before = np.empty(len(sums)), 0.0
    for block, end in enumerate(sums[:, -1].tolist()):
        carried[block] = before
        before = before * powers[-1] + end
    averaged = (sums + carried[:, None] * powers).reshape(-1)[:n]
    # From here on weight^count is lost in the rounding of 1 - weight^count.
    biased = min(n, math.ceil(-37 / math.log(weight)))
    averaged[:biased] /= -np.expm1(np.arange(1, biased + 1) * math.log(weight))
    return averaged * scale


def envelope(values: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(smallest, largest) [c] finite value of each column of `values` [n]; NaN where a column has none."""
    starts, ends = bounds[:-1], bounds[1:]
    low = np.full(len(starts), np.nan)
    high = low.copy()
    filled = ends > starts
    if filled.any():
        # Columns without points take none from their neighbours: the rest follow one another without holes.
        part, own = finite(values[: ends[-1]]), starts[filled]
        low[filled], high[filled] = np.fmin.reduceat(part, own), np.fmax.reduceat(part, own)
    return low, high


def band(values: np.ndarray, bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`envelope`, of a few columns to each side where a column has few points: a range needs about ten.

    NaN before the first and after the last column that has a value, in gaps, and far from any point.
    """
    low, high = envelope(values, bounds)
    known = np.flatnonzero(~np.isnan(low))
    if not len(known):
        return low, high
    density = (bounds[-1] - bounds[0]) / len(low)
    reach = math.ceil(_BAND_POINTS / density / 2) if density < _BAND_POINTS / 2 else 0
    if reach:
        padded_low = np.pad(low, reach, constant_values=np.nan)
        padded_high = np.pad(high, reach, constant_values=np.nan)
        around = range(2 * reach + 1)
        wide_low = np.fmin.reduce([padded_low[at : at + len(low)] for at in around])
        wide_high = np.fmax.reduce([padded_high[at : at + len(low)] for at in around])
        inside = np.zeros(len(low), dtype=bool)
        inside[known[0] : known[-1] + 1] = True
        inside &= ~(np.isnan(low) & gap_columns(values, bounds))
        low, high = np.where(inside, wide_low, np.nan), np.where(inside, wide_high, np.nan)
    return low, high


def means(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The mean [c] of the finite `values` [n] of each column; NaN where a column has none."""
    averages = np.full(len(bounds) - 1, np.nan)
    sizes = np.diff(bounds)
    filled = sizes > 0
    if filled.any():
        # Divided first: a sum of huge values would overflow.
        parts = np.add.reduceat(values[: bounds[-1]] / len(values), bounds[:-1][filled])
        averages[filled] = parts / sizes[filled] * len(values)
    return averages


def gap_columns(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Which columns [c] hold a value that is not finite."""
    count = np.concatenate([[0], np.cumsum(~np.isfinite(values))])
    return count[bounds[1:]] > count[bounds[:-1]]


@dataclass(frozen=True)
class Stroke:
    """A line in rows by column: it covers rows `top` to `bottom` [c] (NaN: nothing in this column)."""

    top: np.ndarray
    bottom: np.ndarray


def stroke(steps: np.ndarray, values: np.ndarray, axis: Axis, scale: Scale, mean: bool = False) -> Stroke:
    """The line through (steps, values) [n], sorted by step, at the resolution of `axis` and `scale`.

    It covers all values of a column, or with `mean` only their mean. Columns without a point lie on the
    straight line between their neighbours, unless a gap is between them. What is beyond the scale is drawn
    at its edge.
    """
    begin = max(int(np.searchsorted(steps, axis.left)) - 1, 0)
    end = min(int(np.searchsorted(steps, axis.right, side="right")) + 1, len(steps))
    steps, values = steps[begin:end], values[begin:end]
    part = np.zeros(len(values), dtype=np.int64)
    is_drawn = np.isfinite(values) & ((values > 0) | (not scale.log))
    if not is_drawn.all():
        part = np.cumsum(~is_drawn)[is_drawn]
        steps, values = steps[is_drawn], values[is_drawn]
    bounds = axis.bounds(steps)
    low, high = (means(values, bounds),) * 2 if mean else envelope(values, bounds)
    top, bottom = _clipped(scale, high), _clipped(scale, low)
    if len(steps) > 1:
        between = _between(steps, values, part, axis, scale)
        top, bottom = (np.floor(np.where(np.isnan(edge), between, edge)) for edge in (top, bottom))
        _join(top, bottom, bounds[:-1], part)
    return Stroke(np.floor(top), np.floor(bottom))


def _clipped(scale: Scale, values: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(scale.offsets(values), 0), scale.rows - 1e-6)


def _between(steps: np.ndarray, values: np.ndarray, part: np.ndarray, axis: Axis, scale: Scale) -> np.ndarray:
    """The height of the line in the middle of each column; NaN before, after and in gaps."""
    middles = axis.left + (np.arange(axis.columns) + 0.5) / axis.columns * (axis.right - axis.left)
    after = np.searchsorted(steps, middles)
    is_inside = (after > 0) & (after < len(steps))
    after = np.clip(after, 1, len(steps) - 1)
    begin, end = steps[after - 1], steps[after]
    share = (middles - begin) / np.maximum(end - begin, 1)
    left, right = _clipped(scale, values[after - 1]), _clipped(scale, values[after])
    heights = left + np.minimum(np.maximum(share, 0), 1) * (right - left)
    return np.where(is_inside & (part[after] == part[after - 1]), heights, np.nan)


def _join(top: np.ndarray, bottom: np.ndarray, firsts: np.ndarray, part: np.ndarray) -> None:
    """Lengthen each column's stretch, in place, until it touches the column before.

    `firsts` [c] is each column's first point; points of different `part` [n] have a gap between them.
    """
    inner = np.clip(firsts, 1, len(part) - 1)
    joined = (firsts == 0) | (firsts >= len(part)) | (part[inner] == part[inner - 1])
    upper, lower = top.copy(), bottom.copy()
    for column in np.flatnonzero(joined[1:] & (upper[:-1] > lower[1:] + 1)) + 1:
        bottom[column] = upper[column - 1] - 1
    for column in np.flatnonzero(joined[1:] & (lower[:-1] < upper[1:] - 1)) + 1:
        top[column] = lower[column - 1] + 1


def dots(line: Stroke, rows: int, pattern: tuple[int, int] = (1, 1)) -> np.ndarray:
    """bool [rows, c]: the dots of a line. `pattern`: of how many columns in a row, the first so many."""
    every = np.arange(rows)[:, None]
    drawn = (every >= line.top) & (every <= line.bottom)
    of, on = pattern
    return drawn & (np.arange(len(line.top)) % of < on)


def braille(drawn: np.ndarray) -> np.ndarray:
    """uint8 [rows / 4, c / 2]: the braille cells of dots [rows, c]; 0 is an empty cell."""
    rows, columns = drawn.shape[0] // 4, drawn.shape[1] // 2
    cells = drawn.reshape(rows, 4, columns, 2).transpose(0, 2, 1, 3).reshape(rows, columns, 8)
    return np.packbits(cells[:, :, _BRAILLE_ORDER], axis=2, bitorder="little")[:, :, 0]
