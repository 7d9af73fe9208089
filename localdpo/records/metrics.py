"""The metrics that step and eval events hold: one table, which every line, chart, tile and page reads.

To add a metric, add a line to METRICS and compute the value; nothing else lists metrics by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from localdpo.records.events import Event, as_number

ACCURACY: Final = "rewards/accuracies"
TIES: Final = "rewards/ties"
ALL_TIED: Final = "all tied"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class MetricChart:
    """A chart of one or more metrics over the steps.

    Attributes:
        name: short, unique.
        titles: the same title from long to short; the longest that fits is shown.
        rank: place among the charts, from 1.
        bounds: the fixed range of the y axis on a page; None: the range of the values.
        on_screen: whether the dashboard draws it; pages draw all of them.
    """

    name: str
    titles: tuple[str, ...]
    rank: int
    bounds: tuple[float, float] | None = None
    on_screen: bool = True


@dataclass(frozen=True, slots=True)
class MetricTile:
    """The tile of a metric: its name in full and in brief, and its place among the tiles, from 1."""

    name: str
    brief: str
    rank: int


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: its key in the `metrics` of an event.
        label: what a legend or a headline calls it.
        unit: of its values; "" for a plain number.
        better: which way is an improvement, "" where neither is.
        chart: the chart that shows it, None for none.
        tile: its tile, None for none.
        headline: whether it is one of the few that a line of the log has; the log itself has all.
        measured: at steps, at evaluations, or at both.
        noisy: whether a moving average over the steps says more than the single values.
        fallback: the metric that stands in for it in logs that do not have it.
    """

    name: str
    label: str
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    chart: MetricChart | None = None
    tile: MetricTile | None = None
    headline: bool = False
    measured: Literal["steps", "evals", "both"] = "both"
    noisy: bool = True
    fallback: str | None = None


_LOSS: Final = MetricChart("loss", ("loss",), 4)
_ACCURACY: Final = MetricChart(
    "accuracy", ("reward accuracy (share of pairs)", "reward accuracy", "accuracy"), 2, bounds=(0.0, 1.0)
)
_MARGIN: Final = MetricChart("margin", ("reward margin (nats)", "reward margin", "margin"), 1)
_KL: Final = MetricChart(
    "kl",
    (
        "KL to reference, exact on held-out prefixes (nats/token)",
        "KL exact, held-out prefixes, nats/tok",
        "KL exact, nats/tok",
        "KL exact",
    ),
    3,
)
_KL_SAMPLED: Final = MetricChart(
    "kl_sampled",
    ("KL to reference, sampled, whole answers (nats/answer)", "KL sampled, nats/answer", "KL sampled"),
    7,
)
_ENTROPY: Final = MetricChart(
    "entropy", ("entropy of the policy (nats/token)", "entropy (nats/token)", "entropy"), 10
)
_LOGPS: Final = MetricChart(
    "logps", ("log-probabilities of answers (nats)", "log-probabilities"), 15, on_screen=False
)
_LOGP_CHANGE: Final = MetricChart(
    "logp",
    (
        "log-prob change from reference (nats/token)",
        "log-prob change per token",
        "logp change per token",
        "logp change/tok",
    ),
    5,
)
_DISPLACEMENT: Final = MetricChart(
    "displacement",
    ("displacement (share of chosen less likely)", "chosen less likely (share)", "displacement"),
    8,
    bounds=(0.0, 1.0),
)
_LENGTH: Final = MetricChart(
    "length", ("response length of samples (tokens)", "length of samples (tokens)", "length"), 9
)
_GRAD: Final = MetricChart("grad", ("gradient norm", "grad norm"), 6)
_RATE: Final = MetricChart("lr", ("learning rate",), 13)
_SPEED: Final = MetricChart("speed", ("tokens per second", "tokens/s"), 11)
_STEP_TIME: Final = MetricChart("step_time", ("seconds a step",), 16, on_screen=False)
_MEMORY: Final = MetricChart("memory", ("memory with cache (GB)", "memory (GB)"), 12)
_EPOCH: Final = MetricChart("epoch", ("epoch (passes over the data)", "epoch"), 14)

# In the order of a line of the log.
METRICS: Final = (
    Metric("loss", "loss", "", "lower", _LOSS, MetricTile("loss", "loss", 4), headline=True),
    Metric(
        ACCURACY, "accuracy", "share", "higher", _ACCURACY, MetricTile("accuracy", "acc", 2), headline=True
    ),
    Metric(
        "rewards/margins",
        "margin",
        "nats",
        "higher",
        _MARGIN,
        MetricTile("margin", "margin", 1),
        headline=True,
    ),
    Metric("rewards/chosen", "chosen", "nats", "higher", _MARGIN),
    Metric("rewards/rejected", "rejected", "nats", "lower", _MARGIN),
    Metric(
        "kl", "KL", "nats/token", "lower", _KL, MetricTile("KL exact", "KL", 3), headline=True, noisy=False
    ),
    Metric("kl_sampled", "sampled KL", "nats/answer", "lower", _KL_SAMPLED, measured="evals"),
    Metric("kl_sampled_se", "standard error of the sampled KL", "nats/answer", measured="evals"),
    Metric("entropy", "entropy", "nats/token", "", _ENTROPY, measured="evals"),
    Metric("logps/chosen", "chosen", "nats/answer", "higher", _LOGPS, MetricTile("logp", "logp", 8)),
    Metric("logps/rejected", "rejected", "nats/answer", "", _LOGPS),
    Metric("grad_norm", "gradient norm", "", "", _GRAD, MetricTile("grad norm", "grad", 7), measured="steps"),
    Metric("learning_rate", "lr", "", "", _RATE, headline=True, measured="steps", noisy=False),
    Metric(
        "tokens_per_second",
        "tokens/s",
        "tokens/s",
        "higher",
        _SPEED,
        MetricTile("tokens/s", "tok/s", 5),
        headline=True,
        measured="steps",
    ),
    Metric("slowest_rank_tokens_per_second", "slowest rank", "tokens/s", "higher", _SPEED, measured="steps"),
    Metric("step_seconds", "seconds a step", "s", "lower", _STEP_TIME, measured="steps"),
    Metric(
        "memory_gb",
        "held",
        "GB",
        "lower",
        _MEMORY,
        MetricTile("memory", "mem", 6),
        measured="steps",
        noisy=False,
        fallback="peak_memory_gb",
    ),
    Metric("peak_memory_gb", "peak of arrays", "GB", "lower", _MEMORY, measured="steps", noisy=False),
    Metric("cache_memory_gb", "cache", "GB", "", _MEMORY, measured="steps", noisy=False),
    Metric("epoch", "epoch", "", "", _EPOCH, measured="steps", noisy=False),
    Metric("displacement", "chosen less likely", "share", "lower", _DISPLACEMENT),
    Metric("kl_baseline", "KL baseline", "nats/answer"),
    Metric("logratio_per_token/chosen", "chosen", "nats/token", "higher", _LOGP_CHANGE),
    Metric("logratio_per_token/rejected", "rejected", "nats/token", "", _LOGP_CHANGE),
    Metric(TIES, "ties", "share"),
    Metric("samples/response_tokens", "tokens", "tokens", "", _LENGTH, measured="evals"),
)
BY_NAME: Final[Mapping[str, Metric]] = {metric.name: metric for metric in METRICS}
HEADLINES: Final = tuple(metric for metric in METRICS if metric.headline)
# Each chart with its metrics, in the order of rank.
CHARTS: Final[Mapping[MetricChart, tuple[Metric, ...]]] = {
    chart: tuple(metric for metric in METRICS if metric.chart == chart)
    for chart in sorted({metric.chart for metric in METRICS if metric.chart}, key=lambda chart: chart.rank)
}

# In the order of rank.
TILES: Final[Mapping[Metric, MetricTile]] = {
    metric: metric.tile
    for metric in sorted(METRICS, key=lambda metric: metric.tile.rank if metric.tile else 0)
    if metric.tile
}


def logged_metrics(event: Event | None) -> Mapping[str, Any]:
    """The metrics of a step, eval or run.finished event as they are logged; empty for any other."""
    metrics = event.data.get("metrics") if event is not None else None
    return metrics if isinstance(metrics, Mapping) else {}


def metrics_of(event: Event | None) -> Mapping[str, Any]:
    """`logged_metrics` as they are shown.

    Where all pairs are tied, as at step 0, none is ranked: the accuracy is None, a gap, and no 0.
    """
    metrics = logged_metrics(event)
    return {**metrics, ACCURACY: None} if ACCURACY in metrics and all_tied(metrics) else metrics


def all_tied(metrics: Mapping[str, Any]) -> bool:
    """Whether both answers of every pair had the same reward."""
    return metrics.get(TIES) == 1


def metric_of(event: Event | None, name: str) -> float | None:
    """One metric of an event or its fallback; None where it is missing or was not finite."""
    return as_number(measured(metrics_of(event), name))


def measured(values: Mapping[str, _T], name: str) -> _T | None:
    """The entry of the metric `name`, or of its fallback; None where there is neither."""
    fallback = BY_NAME[name].fallback
    return values[name] if name in values else values.get(fallback) if fallback else None


def in_order(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics in the order of METRICS, then unknown ones by name."""
    rank = {name: index for index, name in enumerate(BY_NAME)}
    names = sorted(metrics, key=lambda name: (rank.get(name, len(rank)), name))
    return {name: metrics[name] for name in names}
