"""Small static line charts as SVG, for pages that load nothing.

Series differ by their shape (a line, or marks of a kind joined by dashes) and by the words
of the legend, never by its colour alone; colours come from the page, which has a light and a dark set. Here
is the geometry; the template `chart.html.j2` writes it down. `charts_of` draws the events of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Final, Literal

from localdpo.records.events import Event, as_number
from localdpo.records.metrics import CHARTS, Metric, metrics_of

Look = Literal["line", "thin", "broken", "circles", "diamonds", "squares"]

WIDTH: Final = 560
HEIGHT: Final = 260
LEFT, RIGHT, TOP, BOTTOM = 62, 10, 14, 44
TICKS: Final = 5
# More points than pixels show nothing more; of each bucket the lowest and the highest stay.
MOST_POINTS: Final = 400
COLOURS: Final[dict[Look, str]] = {
    "line": "var(--blue)",
    "thin": "var(--vermillion)",
    "broken": "var(--orange)",
    "circles": "var(--blue)",
    "diamonds": "var(--vermillion)",
    "squares": "var(--orange)",
}


@dataclass(frozen=True, slots=True)
class PlotSeries:
    """Points (x, y) by rising x. y None is a gap."""

    label: str
    look: Look
    points: tuple[tuple[float, float | None], ...]

    @property
    def known(self) -> list[tuple[float, float]]:
        """The points that have a finite y."""
        return [(x, y) for x, y in self.points if y is not None and math.isfinite(y)]


# A position on an axis, in pixels, and its label.
Tick = tuple[float, str]


@dataclass(frozen=True, slots=True)
class PlotShape:
    """A series in pixels: `runs` are SVG point lists between gaps, `marks` the positions of its marks."""

    label: str
    look: Look
    colour: str
    runs: tuple[str, ...]
    marks: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """A chart in pixels; `summary` says in words where each series starts and ends."""

    title: str
    summary: str
    x_label: str
    y_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    series: tuple[PlotShape, ...]
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def ticks(low: float, high: float, count: int = TICKS) -> list[float]:
    """About `count` round numbers in [low, high]: 1, 2 or 5 times a power of ten apart."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        raise ValueError(f"an axis needs low < high, got {low} and {high}")
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def axis(values: Iterable[float], bounds: tuple[float, float] | None = None) -> tuple[float, float]:
    """The range to draw: of the values with a little room, or the given bounds. Never empty."""
    if bounds is not None:
        return bounds
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    room = 0.04 * (high - low) or abs(low) * 0.1 or 1.0
    return low - room, high + room


def line_chart(
    title: str,
    y_label: str,
    series: Sequence[PlotSeries],
    *,
    x_label: str = "step",
    bounds: tuple[float, float] | None = None,
    counted: bool = True,
) -> Plot | None:
    """The chart in pixels; None when no series has a point. `bounds` fix the y axis.

    `counted`: whether x is a whole number.
    """
    shown = [line for line in series if line.known]
    if not shown:
        return None
    xs = [x for line in shown for x, _ in line.known]
    x_range = (min(xs), max(xs)) if min(xs) < max(xs) else (min(xs) - 0.5, max(xs) + 0.5)
    y_range = axis((y for line in shown for _, y in line.known), bounds)
    to_x = _scale(x_range, LEFT, WIDTH - RIGHT)
    to_y = _scale(y_range, HEIGHT - BOTTOM, TOP)
    x_ticks = ticks(*x_range)
    if counted:
        x_ticks = [tick for tick in x_ticks if tick == round(tick)] or [round(x_range[0])]
    return Plot(
        title=title,
        summary=_summary(shown),
        x_label=x_label,
        y_label=y_label,
        x_ticks=tuple((to_x(x), f"{x:,.0f}" if counted else f"{x + 0.0:.6g}") for x in x_ticks),
        y_ticks=tuple((to_y(y), f"{y + 0.0:.6g}") for y in ticks(*y_range)),
        series=tuple(_shape(line, to_x, to_y) for line in shown),
    )


def thinned(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """At most about MOST_POINTS points: of each stretch the lowest and the highest, and every gap."""
    if len(points) <= MOST_POINTS:
        return list(points)
    size = math.ceil(2 * len(points) / MOST_POINTS)
    thin: list[tuple[float, float | None]] = []
    for start in range(0, len(points), size):
        part = points[start : start + size]
        known = [(x, y) for x, y in part if y is not None]
        ends = {min(known, key=itemgetter(1)), max(known, key=itemgetter(1))} if known else set()
        gaps = {point for point in part if point[1] is None}
        thin += sorted([*ends, *list(gaps)[:1]], key=itemgetter(0))
    return thin


def _scale(values: tuple[float, float], start: float, end: float) -> Callable[[float], float]:
    """Linear from a range of values to a range of pixels, rounded to a tenth."""
    low, high = values

    def place(value: float) -> float:
        share = (value - low) / (high - low)
        return round(start + min(1.0, max(0.0, share)) * (end - start), 1)

    return place


def _shape(series: PlotSeries, to_x: Callable[[float], float], to_y: Callable[[float], float]) -> PlotShape:
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in thinned(series.points):
        if y is None or not math.isfinite(y):
            runs.append([])
        else:
            runs[-1].append((to_x(x), to_y(y)))
    # A single point makes no line: it gets a mark whatever its series looks like.
    has_marks = series.look in ("circles", "diamonds", "squares")
    marked = [point for run in runs if has_marks or len(run) == 1 for point in run]
    lines = tuple(" ".join(f"{x},{y}" for x, y in run) for run in runs if len(run) > 1)
    return PlotShape(series.label, series.look, COLOURS[series.look], lines, tuple(marked))


def _summary(series: Sequence[PlotSeries]) -> str:
    """For those who cannot see the picture: where each series starts and ends."""
    parts = []
    for line in series:
        first, last = line.known[0], line.known[-1]
        parts.append(f"{line.label}: {first[1]:.4g} at {first[0]:g}, {last[1]:.4g} at {last[0]:g}")
    return "; ".join(parts)


# Looks in order: training is a line, evaluations are marks joined by dashes.
TRAIN_LOOKS: Final[tuple[Look, ...]] = ("line", "thin", "broken")
EVAL_LOOKS: Final[tuple[Look, ...]] = ("circles", "diamonds", "squares")


def charts_of(events: Sequence[Event], names: Collection[str] = ()) -> list[Plot]:
    """The charts of these names that have something to show, in the order of CHARTS; without names all."""
    charts = (
        line_chart(
            chart.titles[0][:1].upper() + chart.titles[0][1:],
            metrics[0].unit or metrics[0].label,
            series_of(metrics, events),
            bounds=chart.bounds,
        )
        for chart, metrics in CHARTS.items()
        if not names or chart.name in names
    )
    return [chart for chart in charts if chart is not None]


def series_of(metrics: Sequence[Metric], events: Sequence[Event]) -> list[PlotSeries]:
    """The metrics of a chart, each while training and at evaluations."""
    return [
        PlotSeries(f"{metric.label}, {where}", look, points_of(events, kind, metric.name))
        for kind, where, looks in (("step", "training", TRAIN_LOOKS), ("eval", "held-out", EVAL_LOOKS))
        for metric, look in zip(metrics, looks, strict=False)
    ]


def points_of(events: Sequence[Event], kind: str, metric: str) -> tuple[tuple[float, float | None], ...]:
    """(step, value) of a metric in the events of a kind; None where it was not finite.

    An accuracy of nothing but ties (before the first update) is no 0, but a gap.
    """
    return tuple(
        (float(event.step), as_number(metrics_of(event)[metric]))
        for event in events
        if event.type == kind and event.step is not None and metric in metrics_of(event)
    )
