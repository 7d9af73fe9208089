from __future__ import annotations

from localdpo.records.events import Event
from localdpo.records.metrics import BY_NAME, CHARTS, METRICS, TILES, in_order, metric_of


def test_names_charts_and_ranks_are_unique() -> None:
    assert len(BY_NAME) == len(METRICS)
    assert len({chart.name for chart in CHARTS}) == len(CHARTS)
    assert [chart.rank for chart in CHARTS] == list(range(1, len(CHARTS) + 1))
    assert [tile.rank for tile in TILES.values()] == list(range(1, len(TILES) + 1))


def test_a_fallback_is_a_metric_of_the_table() -> None:
    assert all(metric.fallback is None or metric.fallback in BY_NAME for metric in METRICS)


def test_an_older_log_has_the_peak_in_place_of_the_memory_held() -> None:
    older = Event(1, 0.0, "step", 1, {"metrics": {"peak_memory_gb": 2.5}})
    newer = Event(1, 0.0, "step", 1, {"metrics": {"peak_memory_gb": 2.5, "memory_gb": 3.0}})
    assert (metric_of(older, "memory_gb"), metric_of(newer, "memory_gb")) == (2.5, 3.0)
    assert metric_of(None, "memory_gb") is None


def test_a_line_has_the_metrics_in_the_order_of_the_table_then_by_name() -> None:
    shuffled = dict.fromkeys(("zeta", "alpha", *reversed(BY_NAME)), 0.0)
    assert list(in_order(shuffled)) == [*BY_NAME, "alpha", "zeta"]
