"""How the charts of the metrics are drawn, and the arrays behind them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from localdpo.dashboard.drawing import ChartSeries, Kind, ReferenceValue
from localdpo.dashboard.plot import smooth_on
from localdpo.dashboard.state import MetricSeries, RunState
from localdpo.records.events import as_number
from localdpo.records.metrics import CHARTS as METRIC_CHARTS
from localdpo.records.metrics import Metric

# The weights that the smoothing key goes through; the first is the one at the start, 0 is none.
SMOOTHINGS: Final = (0.9, 0.97, 0.99, 0.0, 0.6)
_LN2: Final = math.log(2)


@dataclass(frozen=True)
class Part:
    """One series of a chart: a metric of the steps (`train`) or of the evaluations (`evals`).

    `smoothed`: whether the line is the moving average, with the range of the values behind it if `band`.
    """

    source: Literal["train", "evals"]
    metric: str
    name: str
    style: str = "chosen"
    kind: Kind = "line"
    band: bool = False
    smoothed: bool = True


def _before_training(state: RunState) -> tuple[ReferenceValue, ...]:
    """The held-out loss at step 0, where policy and reference are one: ln 2 of the DPO loss."""
    losses = state.evals.get("loss")
    first = losses.values[0] if losses is not None and len(losses) and losses.steps[0] == 0 else math.nan
    if not math.isfinite(first):
        return (ReferenceValue(_LN2, "ln 2"),) if state.start.text("loss") == "sigmoid" else ()
    return (ReferenceValue(first, "ln 2" if abs(first - _LN2) < 5e-4 else "before training"),)


def _clipping(state: RunState) -> tuple[ReferenceValue, ...]:
    most = as_number(state.start.recipe_section("train").get("max_grad_norm"))
    return () if most is None else (ReferenceValue(most, f"clipped at {most:g}"),)


def _memory_limit(state: RunState) -> tuple[ReferenceValue, ...]:
    limit = state.start.number("memory_limit_gb")
    return () if limit is None else (ReferenceValue(limit, f"limit {limit:.3g}"),)


@dataclass(frozen=True)
class ChartSpec:
    """One chart: a short name, its title from long to short, its series, the values to compare with.

    `words`: what a filter looks for its words in.
    """

    name: str
    titles: tuple[str, ...]
    parts: tuple[Part, ...]
    words: str
    references: Callable[[RunState], tuple[ReferenceValue, ...]] = lambda state: ()


# How the series of a chart of several metrics are told apart: (colour, line). A metric alone in its chart
# has a plain line in blue.
_LOOKS: Final[dict[str, tuple[str, Kind]]] = {
    "rewards/margins": ("ink", "line"),
    "rewards/chosen": ("chosen", "dashed"),
    "rewards/rejected": ("rejected", "dotted"),
    "logratio_per_token/chosen": ("chosen", "line"),
    "logratio_per_token/rejected": ("rejected", "dashed"),
    "memory_gb": ("chosen", "line"),
    "peak_memory_gb": ("ink", "dashed"),
    "cache_memory_gb": ("rejected", "dotted"),
}
# Bare lines, without range and evaluations: the margin between them shows both.
_BARE: Final = frozenset({"rewards/chosen", "rewards/rejected"})
_REFERENCES: Final[dict[str, Callable[[RunState], tuple[ReferenceValue, ...]]]] = {
    "margin": lambda state: (ReferenceValue(0.0),),
    "accuracy": lambda state: (ReferenceValue(0.5, "0.5 chance"),),
    "loss": _before_training,
    "logp": lambda state: (ReferenceValue(0.0),),
    "grad": _clipping,
    "kl_sampled": lambda state: (ReferenceValue(0.0),),
    "memory": _memory_limit,
}


def _parts(metrics: Sequence[Metric]) -> tuple[Part, ...]:
    """The lines of the training steps, then the marks of the evaluations."""
    alone = len(metrics) == 1
    lines, marks = [], []
    for metric in metrics:
        colour, kind = _LOOKS.get(metric.name, ("chosen", "line"))
        if metric.measured == "evals":
            marks.append(Part("evals", metric.name, "eval", colour, "points"))
            marks.append(Part("evals", metric.name, "", colour, "dotted", smoothed=False))
            continue
        name = "train" if alone else metric.label
        has_range = metric.noisy and metric.name not in _BARE
        lines.append(Part("train", metric.name, name, colour, kind, has_range, metric.noisy))
        if metric.measured == "both" and metric.name not in _BARE:
            marks.append(Part("evals", metric.name, "eval", "ink" if alone else colour, "points"))
    return (*lines, *marks)


CHARTS: Final = tuple(
    ChartSpec(
        chart.name,
        chart.titles,
        _parts(metrics),
        " ".join((chart.name, chart.titles[0], *(f"{metric.name} {metric.label}" for metric in metrics))),
        _REFERENCES.get(chart.name, lambda state: ()),
    )
    for chart, metrics in METRIC_CHARTS.items()
    if chart.on_screen
)


def available(state: RunState) -> list[ChartSpec]:
    """The charts of which the run has at least one value, in the order of the table."""
    return [spec for spec in CHARTS if any(_series(state, part) is not None for part in spec.parts)]


def _series(state: RunState, part: Part) -> MetricSeries | None:
    series = (state.train if part.source == "train" else state.evals).get(part.metric)
    return series if series is not None and len(series) else None


@dataclass(frozen=True)
class _Kept:
    """The arrays of a series as they were at a version of it."""

    series: MetricSeries
    version: int
    cuts: int
    steps: np.ndarray
    values: np.ndarray
    line: np.ndarray | None


class Arrays:
    """The series of a run as arrays with their moving averages, kept until they grow."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, str, float], _Kept] = {}

    def of(self, spec: ChartSpec, state: RunState, weight: float) -> list[ChartSeries]:
        """The series of a chart that have values, smoothed with `weight`."""
        found = []
        for part in spec.parts:
            series = _series(state, part)
            if series is None:
                continue
            kept = self._arrays(series, part, weight if part.smoothed and part.kind != "points" else 0.0)
            found.append(
                ChartSeries(part.name, kept.steps, kept.values, part.style, part.kind, part.band, kept.line)
            )
        return found

    def version(self, spec: ChartSpec, state: RunState) -> tuple[int, ...]:
        """Changes when one of the chart's series does."""
        return tuple(0 if (one := _series(state, part)) is None else one.version for part in spec.parts)

    def _arrays(self, series: MetricSeries, part: Part, weight: float) -> _Kept:
        key = (part.source, part.metric, weight)
        old = self._kept.get(key)
        if old is not None and old.series is series and old.version == series.version:
            return old
        values, line = series.values, None
        if weight > 0:
            is_longer = old is not None and old.series is series and old.cuts == series.cuts
            before = old.line if is_longer and old is not None and old.line is not None else np.empty(0)
            line = smooth_on(before, values, weight)
        kept = _Kept(series, series.version, series.cuts, series.steps, values, line)
        # Other weights of this series are stale now, and asked for again only by the smoothing key.
        self._kept = {k: v for k, v in self._kept.items() if k[:2] != key[:2] or k[2] == 0.0}
        self._kept[key] = kept
        return kept
