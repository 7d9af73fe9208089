"""Draws a chart into a picture: frame, title, axes, bands, lines, marks, cross-hair. Pure.

    ╭─ reward margin ────────── 0.83 ╮   title, newest value of the first series
    │ 1.0┤        ⢀⣠⠤⠖⠋⠉             │   band: range of the values; line: their moving average
    │ 0.5┤   ⣀⡤⠖◆⠋┈┈┈┈┈┈┈┈┈┈┈┈┈┈┈┈┈┈┈│   marks: evaluations; dotted: a value to compare with
    │   0┤⡤⠖⠋                        │
    │    └0──────────✖──────────1.2k │   ✖: values that were not finite
    ╰─ ─ train 0.83  ◆ held-out 0.79 ╯   legend, with values at the cross-hair where there is one

In ASCII a cell holds one point of a line instead of eight dots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from localdpo.dashboard.axes import Axis, Scale, limits, short, short_step, ticks
from localdpo.dashboard.picture import Picture, fitted
from localdpo.dashboard.plot import Stroke, band, braille, dots, envelope, gap_columns, stroke

Kind = Literal["line", "dashed", "dotted", "points"]
# Of how many dot columns the first so many are drawn; a line in the legend; in ASCII every point of it.
_LINES: Final[dict[Kind, tuple[tuple[int, int], str, str]]] = {
    "line": ((1, 1), "━", "*"),
    "dashed": ((6, 4), "╍", "o"),
    "dotted": ((2, 1), "┈", "."),
}
# Marks of the series of points, in their order.
_MARKS: Final = (("◆", "@"), ("◇", "%"), ("▲", "&"), ("△", "$"))
# (step, names, values, reference values) in the legend, from full to sparse; at a step its values count most.
_FULLNESS: Final = ((0, 1, 1, 1), (0, 1, 1, 0), (0, 1, 0, 1), (0, 1, 0, 0), (0, 0, 0, 0))
_FULLNESS_AT_STEP: Final = ((1, 1, 1, 1), (1, 1, 1, 0), (1, 0, 1, 0), (0, 0, 1, 0), (0, 0, 0, 0))
_MARK_GAP: Final = 3  # columns from one mark of a series to the next, where there are many
_RANGE_COLUMNS: Final = 64  # of which the inner 96% of a band's range are taken
_MANY_ROWS: Final = 10  # up to as many, a tick may stand on every second row
_COLUMNS_PER_TICK: Final = 18
_MIN_LABELLED: Final = (22, 2)  # columns, rows inside the frame from which values are written at the axis


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
        return next((float(value) for value in self.drawn[::-1] if np.isfinite(value)), None)

    def at(self, step: float) -> float | None:
        """The value at `step` or the newest one before; None before the first, and in a gap."""
        place = int(np.searchsorted(self.steps, step, side="right")) - 1
        return float(self.values[place]) if place >= 0 and np.isfinite(self.values[place]) else None


@dataclass(frozen=True)
class ReferenceValue:
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
    references: tuple[ReferenceValue, ...] = ()
    log: bool = False
    cursor: float | None = None
    ascii: bool = False
    shade: bool = False
    chosen: bool = False


@dataclass(frozen=True)
class DrawnChart:
    """A drawn chart: its picture, and from which column on which steps are (None where it is too small)."""

    picture: Picture
    left: int = 0
    axis: Axis | None = None

    def step_at(self, column: int) -> float | None:
        """The step in the middle of a column of the picture; None outside the axes."""
        if self.axis is None or not 0 <= column - self.left < self.axis.columns:
            return None
        return self.axis.step(column - self.left)


def draw(width: int, height: int, series: Sequence[ChartSeries], face: Face) -> DrawnChart:
    """The chart at `width` x `height` cells. Any size from 1x1 on; what has no room is dropped."""
    picture = Picture(width, height)
    if width < 4 or height < 3:
        picture.put(0, 0, fitted(face.titles[-1], width, ""), "ink")
        return DrawnChart(picture)
    _frame(picture, series, face)
    rows = height - 2
    has_axis = rows >= 2
    plot_rows = rows - has_axis
    per_column = (1, 1) if face.ascii else (2, 4)
    scale = _scale(series, face, plot_rows)
    labels = _labels(scale, plot_rows) if width - 2 >= _MIN_LABELLED[0] and has_axis else []
    margin = max((len(text) for _, text in labels), default=-1) + 1
    columns = width - 2 - margin
    axis = Axis(*face.window, columns)
    fine = Axis(*face.window, columns * per_column[0])
    inner = picture.part(1, 1 + margin, plot_rows, columns)
    area = _Area(
        picture, inner, 1, 1 + margin, axis, scale, tuple(axis.bounds(curve.steps) for curve in series)
    )
    tints = _bands(area, series, face)
    _references(area, face)
    drawn = _lines(area, series, face, fine, per_column[1])
    for covered, colour in tints:
        # A line takes the place of the block that ends a band: its cell belongs to the band as a whole.
        inner.tint(covered & drawn, colour)
    _points(area, series, face)
    if has_axis:
        _axes(area, series, face, labels)
    _crosshair(area, face)
    return DrawnChart(picture, area.left, axis)


@dataclass(frozen=True)
class _Area:
    """Where the lines are drawn: `inner` [rows, columns] is the part of `picture` from (top, left) on.

    `bounds` are `axis.bounds` of each series.
    """

    picture: Picture
    inner: Picture
    top: int
    left: int
    axis: Axis
    scale: Scale
    bounds: tuple[np.ndarray, ...]

    @property
    def rows(self) -> int:
        return self.inner.height

    @property
    def columns(self) -> int:
        return self.inner.width


def _scale(series: Sequence[ChartSeries], face: Face, rows: int) -> Scale:
    firm: list[np.ndarray] = []
    soft: list[np.ndarray] = []
    axis = Axis(*face.window, _RANGE_COLUMNS)
    for curve in series:
        bounds = axis.bounds(curve.steps)
        firm += envelope(curve.drawn, bounds)
        if curve.line is not None and curve.band:
            soft += envelope(curve.values, bounds)
    low, high = limits(firm, soft, face.log, max(_ticks_on(rows), 2))
    for reference in face.references:
        near = high - low if np.isfinite(high - low) else 0.0
        if not face.log and low - near / 2 <= reference.value <= high + near / 2:
            low, high = min(low, reference.value), max(high, reference.value)
    return Scale(low, high, rows, face.log)


def _ticks_on(rows: int) -> int:
    return max(rows // (3 if rows > _MANY_ROWS else 2), 1)


def _labels(scale: Scale, rows: int) -> list[tuple[int, str]]:
    """(row, label) of the value axis, one a row."""
    found = ticks(scale.low, scale.high, _ticks_on(rows), scale.log)
    labels = {row: label for value, label in found if (row := scale.row(value)) is not None}
    return sorted(labels.items())


def _frame(picture: Picture, series: Sequence[ChartSeries], face: Face) -> None:
    corners, level, upright = ("++++", "-", "|") if face.ascii else ("╭╮╰╯", "─", "│")
    colour = "chosen" if face.chosen else "line"
    last, width = picture.height - 1, picture.width
    picture.put(0, 0, corners[0] + level * (width - 2) + corners[1], colour)
    picture.put(last, 0, corners[2] + level * (width - 2) + corners[3], colour)
    every = np.arange(1, last)
    for column in (0, width - 1):
        picture.fill((every, np.full(len(every), column)), upright, colour)
    value = _value(series[0], face) if series else ""
    room = width - 4
    title = next((text for text in face.titles if len(text) + len(value) + 5 <= room), face.titles[-1])
    ellipsis = "~" if face.ascii else "…"
    picture.put(0, 2, f" {fitted(title, room - 2, ellipsis)} ", "ink", bold=True)
    if value and len(title) + len(value) + 4 <= room:
        picture.put(0, width - 3 - len(value), f" {value} ", series[0].style, bold=True)
    column = 2
    for text, curve in _legend(series, face, width - 4):
        picture.put(last, column, text, "muted" if curve is None else curve.style)
        column += len(text)


def _value(curve: ChartSeries, face: Face) -> str:
    value = curve.newest if face.cursor is None else curve.at(face.cursor)
    return "" if value is None else short(value)


def _legend(series: Sequence[ChartSeries], face: Face, room: int) -> list[tuple[str, ChartSeries | None]]:
    """Texts of the lower edge with their series: as much of it as has room, whole entries only."""
    head = "" if face.cursor is None else f" step {short_step(face.cursor)}"
    entries = [
        (_swatch(series, curve, face), curve.name, _value(curve, face), curve)
        for curve in series
        if curve.name
    ]
    if len(entries) == 1 and face.cursor is None:
        entries = []
    dotted = "-" if face.ascii else "┈"
    notes = "".join(f" {dotted} {reference.label}" for reference in face.references if reference.label)
    for headed, named, valued, noted in _FULLNESS_AT_STEP if head else _FULLNESS:
        parts: list[tuple[str, ChartSeries | None]] = [(head, None)] if headed else []
        for swatch, name, value, curve in entries:
            words = [swatch, *([name] if named else []), *([value] if valued and value else [])]
            parts.append((f" {' '.join(words)}", curve))
        if noted and notes:
            parts.append((notes, None))
        length = sum(len(text) for text, _ in parts)
        if length <= room:
            return [*parts, (" " * (0 < length < room), None)]
    return []


def _swatch(series: Sequence[ChartSeries], curve: ChartSeries, face: Face) -> str:
    if curve.kind == "points":
        return _mark(series, curve, face)
    _, line, point = _LINES[curve.kind]
    return point if face.ascii else line


def _mark(series: Sequence[ChartSeries], curve: ChartSeries, face: Face) -> str:
    points = [other for other in series if other.kind == "points"]
    index = next(index for index, other in enumerate(points) if other is curve)
    return _MARKS[index % len(_MARKS)][face.ascii]


def _bands(area: _Area, series: Sequence[ChartSeries], face: Face) -> list[tuple[np.ndarray, str]]:
    """The range of the values: a tint, or light characters.

    Returns the tinted cells [rows, columns] and their colours.
    """
    tints = []
    rows = np.arange(area.rows)[:, None]
    for curve, bounds in reversed(list(zip(series, area.bounds, strict=True))):
        if not curve.band or curve.line is None:
            continue
        low, high = band(curve.values, bounds)
        if area.scale.log:
            low = np.fmax(low, area.scale.low)
        top, bottom = area.scale.offsets(high), area.scale.offsets(low)
        if face.shade:
            covered = (rows + 0.75 > top) & (rows + 0.25 < bottom)
            area.inner.fill(covered, ":" if face.ascii else "░", "muted")
        else:
            edges = np.round(top * 8), np.round(bottom * 8)
            tints.append((_tint(area.inner, *edges, curve.style, has_blocks=not face.ascii), curve.style))
        area.inner.fill((rows == 0) & (top < -0.5), "^" if face.ascii else "▴", curve.style)
    return tints


def _tint(
    inner: Picture, top: np.ndarray, bottom: np.ndarray, colour: str, *, has_blocks: bool
) -> np.ndarray:
    """Tint each column from `top` to `bottom` [c], counted in eighths of a row; the cells [rows, c] touched.

    Blocks fill a cell from below, so the upper edge is exact; the lower one is to a half. Without blocks a
    cell is tinted where the band takes half of it.
    """
    bottom = np.maximum(bottom, top + 1)
    begins = np.arange(inner.height)[:, None] * 8
    covered = (begins < bottom) & (begins + 8 > top)
    upper, depth = covered & (begins < top), bottom - begins
    lower = covered & ~upper & (depth < 6)
    if not has_blocks:
        covered = (np.minimum(begins + 8, bottom) - np.maximum(begins, top)) >= 4
        inner.tint(covered, colour)
        return covered
    inner.fill(covered, " ")
    inner.tint(covered & ~upper & ~lower, colour)
    # Where two bands meet, the later one takes the cell.
    inner.tint(upper | lower, "")
    filled = np.where(lower, np.where(depth >= 3, ord("▀"), ord("▔")), ord("█") - 8 + begins + 8 - top)
    edges = upper | lower
    inner.fill(edges, filled[edges].astype("<u4"), colour, pale=True)
    return covered


def _references(area: _Area, face: Face) -> None:
    for reference in face.references:
        if face.log and reference.value <= 0:
            continue
        row = area.scale.row(reference.value)
        if row is not None:
            area.inner.put(row, 0, ("-" if face.ascii else "┈") * area.columns, "muted")


def _lines(area: _Area, series: Sequence[ChartSeries], face: Face, fine: Axis, per_row: int) -> np.ndarray:
    """The lines, the first series on top; bool [rows, columns]: where they are.

    A cell has one colour, and takes that of the topmost line in it.
    """
    scale = Scale(area.scale.low, area.scale.high, area.rows * per_row, area.scale.log)
    taken = np.zeros((area.rows, area.columns), dtype=np.uint8)
    for curve in reversed([curve for curve in series if curve.kind != "points"]):
        pattern, _, char = _LINES[curve.kind]
        mean = curve.line is not None
        line: Stroke = stroke(curve.steps, curve.drawn, fine, scale, mean)
        if face.ascii:
            points = dots(line, scale.rows)
            taken |= points
            area.inner.fill(points, char, curve.style)
            continue
        cells = braille(dots(line, scale.rows, pattern))
        taken |= cells
        own = cells > 0
        area.inner.fill(own, taken[own] + np.uint32(0x2800), curve.style)
    return taken > 0


def _points(area: _Area, series: Sequence[ChartSeries], face: Face) -> None:
    """The marks, each of the newest point in its column; where they crowd, some are skipped."""
    for curve, bounds in reversed(list(zip(series, area.bounds, strict=True))):
        if curve.kind != "points":
            continue
        columns = np.flatnonzero(np.diff(bounds))
        if len(columns) * _MARK_GAP > area.columns:
            columns = columns[(columns[-1] - columns) % _MARK_GAP == 0]
        rows = area.scale.rows_of(curve.values[bounds[columns + 1] - 1])
        area.inner.fill(
            (rows[rows >= 0], columns[rows >= 0]), _mark(series, curve, face), curve.style, bold=True
        )


def _axes(area: _Area, series: Sequence[ChartSeries], face: Face, labels: list[tuple[int, str]]) -> None:
    corner, level, upright, tick, cross = "+-||x" if face.ascii else "└─│┤✖"
    base, edge = area.top + area.rows, area.left - 1
    if labels:
        every = np.arange(area.top, base)
        area.picture.fill((every, np.full(len(every), edge)), upright, "line")
        for row, text in labels:
            area.picture.put(area.top + row, edge - len(text), text, "muted")
            area.picture.put(area.top + row, edge, tick, "line")
        area.picture.put(base, edge, corner, "line")
    area.picture.put(base, area.left, level * area.columns, "line")
    for column, text in _step_labels(area.axis):
        area.picture.put(base, area.left + column, text, "muted")
    for curve, bounds in zip(series, area.bounds, strict=True):
        for column in np.flatnonzero(gap_columns(curve.values, bounds)).tolist():
            area.picture.put(base, area.left + column, cross, "critical", bold=True)


def _step_labels(axis: Axis) -> list[tuple[int, str]]:
    """(column, label) of the step axis: the ends, and round steps between where they have room."""
    first, last = short_step(axis.left), short_step(axis.right)
    if len(first) + len(last) + 2 > axis.columns:
        return [(0, first)] if len(first) <= axis.columns else []
    labels, free, limit = [(0, first)], len(first) + 2, axis.columns - len(last) - 2
    for value, _ in ticks(axis.left, axis.right, axis.columns // _COLUMNS_PER_TICK):
        text, column = short_step(value), axis.column(value)
        if column is not None and column - len(text) // 2 >= free and column + len(text) <= limit:
            labels.append((column - len(text) // 2, text))
            free = column + len(text) + 2
    return [*labels, (axis.columns - len(last), last)]


def _crosshair(area: _Area, face: Face) -> None:
    column = None if face.cursor is None else area.axis.column(face.cursor)
    if column is None:
        return
    free = np.zeros((area.rows, area.columns), dtype=bool)
    free[:, column] = area.inner.codes[:, column] == ord(" ")
    area.inner.fill(free, "|" if face.ascii else "│", "ink")
