"""The curves of a run as charts: from its events to what pages/chart.py draws."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from localdpo.pages.chart import Look, Plot, PlotSeries, line_chart
from localdpo.records.events import Event, as_number
from localdpo.records.metrics import CHARTS, Metric, metrics_of

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
