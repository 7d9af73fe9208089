"""Which charts there are, of which metrics, and the arrays behind them: one table, an entry a chart."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from localdpo.dashboard.chartdata import ChartSeries, Kind, Reference
from localdpo.dashboard.plot import smooth_on
from localdpo.dashboard.series import Series
from localdpo.dashboard.state import RunState

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


def _zero(_: RunState) -> tuple[Reference, ...]:
    return (Reference(0.0),)


def _half(_: RunState) -> tuple[Reference, ...]:
    return (Reference(0.5, "0.5 chance"),)


def _nothing(_: RunState) -> tuple[Reference, ...]:
    return ()


def _before_training(state: RunState) -> tuple[Reference, ...]:
    """The held-out loss at step 0, where policy and reference are one: ln 2 of the DPO loss."""
    losses = state.evals.get("loss")
    first = losses.at(0) if losses is not None else None
    if first is None:
        return (Reference(_LN2, "ln 2"),) if state.start.loss == "sigmoid" else ()
    return (Reference(first, "ln 2" if abs(first - _LN2) < 5e-4 else "before training"),)


def _clipping(state: RunState) -> tuple[Reference, ...]:
    train = state.start.recipe.get("train")
    most = train.get("max_grad_norm") if isinstance(train, dict) else None
    return (Reference(float(most), f"clipped at {most:g}"),) if isinstance(most, int | float) else ()


def _memory_limit(state: RunState) -> tuple[Reference, ...]:
    limit = state.start.memory_limit_gb
    return () if limit is None else (Reference(limit, f"limit {limit:.3g}"),)


@dataclass(frozen=True)
class ChartSpec:
    """One chart: a short name, its title from long to short, its series, the values to compare with."""

    name: str
    titles: tuple[str, ...]
    parts: tuple[Part, ...]
    references: Callable[[RunState], tuple[Reference, ...]] = _nothing


def _measured(metric: str) -> tuple[Part, ...]:
    """A metric of the evaluations alone: marks, and a thin line from one to the next."""
    return (
        Part("evals", metric, "eval", "chosen", "points"),
        Part("evals", metric, "", "chosen", "dotted", smoothed=False),
    )


def _logged(metric: str, *, smoothed: bool = True) -> tuple[Part, ...]:
    return (Part("train", metric, "train", "chosen", band=smoothed, smoothed=smoothed),)


CHARTS: Final = (
    ChartSpec(
        "margin",
        ("reward margin (nats)", "reward margin", "margin"),
        (
            Part("train", "rewards/margins", "margin", "ink", band=True),
            Part("train", "rewards/chosen", "chosen", "chosen", "dashed"),
            Part("train", "rewards/rejected", "rejected", "rejected", "dotted"),
            Part("evals", "rewards/margins", "eval", "ink", "points"),
        ),
        _zero,
    ),
    ChartSpec(
        "accuracy",
        ("reward accuracy (pairs ranked right)", "reward accuracy", "accuracy"),
        (*_logged("rewards/accuracies"), Part("evals", "rewards/accuracies", "eval", "ink", "points")),
        _half,
    ),
    ChartSpec(
        "kl",
        (
            "KL to reference, exact on held-out prefixes (nats/token)",
            "KL exact, held-out prefixes, nats/tok",
            "KL exact, nats/tok",
            "KL exact",
        ),
        (*_logged("kl", smoothed=False), Part("evals", "kl", "eval", "ink", "points")),
    ),
    ChartSpec(
        "loss",
        ("loss",),
        (*_logged("loss"), Part("evals", "loss", "eval", "ink", "points")),
        _before_training,
    ),
    ChartSpec(
        "logp",
        (
            "log-prob change from reference (nats/token)",
            "log-prob change per token",
            "logp change per token",
            "logp change/tok",
        ),
        (
            Part("train", "logratio_per_token/chosen", "chosen", "chosen", band=True),
            Part("train", "logratio_per_token/rejected", "rejected", "rejected", "dashed", band=True),
            Part("evals", "logratio_per_token/chosen", "eval", "chosen", "points"),
            Part("evals", "logratio_per_token/rejected", "eval", "rejected", "points"),
        ),
        _zero,
    ),
    ChartSpec("grad", ("gradient norm", "grad norm"), _logged("grad_norm"), _clipping),
    ChartSpec(
        "kl_sampled",
        (
            "KL to reference, sampled, whole answers (nats/answer)",
            "KL sampled, nats/answer",
            "KL sampled",
        ),
        _measured("kl_sampled"),
        _zero,
    ),
    ChartSpec(
        "displacement",
        ("displacement (share of chosen less likely)", "chosen less likely (share)", "displacement"),
        (*_logged("displacement"), Part("evals", "displacement", "eval", "ink", "points")),
    ),
    ChartSpec(
        "length",
        ("response length of samples (tokens)", "length of samples (tokens)", "length"),
        _measured("samples/response_tokens"),
    ),
    ChartSpec(
        "entropy",
        ("entropy of the policy (nats/token)", "entropy (nats/token)", "entropy"),
        _measured("entropy"),
    ),
    ChartSpec("speed", ("tokens per second", "tokens/s"), _logged("tokens_per_second")),
    ChartSpec(
        "memory",
        ("memory with cache (GB)", "memory (GB)"),
        (
            Part("train", "memory_gb", "held", "chosen", smoothed=False),
            Part("train", "peak_memory_gb", "peak of arrays", "ink", "dashed", smoothed=False),
            Part("train", "cache_memory_gb", "cache", "rejected", "dotted", smoothed=False),
        ),
        _memory_limit,
    ),
    ChartSpec("lr", ("learning rate",), _logged("learning_rate", smoothed=False)),
    ChartSpec("epoch", ("epoch (passes over the data)", "epoch"), _logged("epoch", smoothed=False)),
)


def available(state: RunState) -> list[ChartSpec]:
    """The charts of which the run has at least one value, in the order of the table."""
    return [spec for spec in CHARTS if any(_series(state, part) is not None for part in spec.parts)]


def _series(state: RunState, part: Part) -> Series | None:
    series = (state.train if part.source == "train" else state.evals).get(part.metric)
    return series if series is not None and len(series) else None


@dataclass(frozen=True)
class _Kept:
    """The arrays of a series as they were at a version of it."""

    series: Series
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

    def _arrays(self, series: Series, part: Part, weight: float) -> _Kept:
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
