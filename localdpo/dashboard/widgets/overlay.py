"""Some runs beside each other: their curves in the same charts, and the options in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from rich.table import Table
from textual.app import ComposeResult
from textual.containers import Horizontal

from localdpo.core.text import printable
from localdpo.dashboard.appbase import app_of
from localdpo.dashboard.drawing import ChartSeries, Kind, ReferenceValue
from localdpo.dashboard.feed import RunFeed
from localdpo.dashboard.plot import smooth
from localdpo.dashboard.state import MetricSeries
from localdpo.dashboard.widgets.basic import TextPanel
from localdpo.dashboard.widgets.chart import LineChart
from localdpo.launch.recipediff import options_of
from localdpo.out.console import Text
from localdpo.records.metrics import ACCURACY, BY_NAME
from localdpo.records.rundir import RunDir
from localdpo.records.wording import differing, option_words

# The colour and line of each run, in the order of their letters.
_LOOKS: Final[tuple[tuple[str, Kind], ...]] = (
    ("chosen", "line"),
    ("rejected", "dashed"),
    ("ink", "dotted"),
    ("critical", "line"),
    ("chosen", "dashed"),
    ("rejected", "dotted"),
)
MOST_RUNS: Final = len(_LOOKS)
_SMOOTH: Final = 0.9
# Of an option, so that its values keep half of the panel.
_KEY_WIDTH: Final = 20
# The metrics with a chart and the value to compare with; of those that have values the first are shown, as
# many as the screen is wide.
_CHARTS: Final = (
    (BY_NAME["rewards/margins"], ReferenceValue(0.0)),
    (BY_NAME[ACCURACY], ReferenceValue(0.5, "0.5")),
    (BY_NAME["loss"], None),
    (BY_NAME["tokens_per_second"], None),
)
# How the accuracy of several runs rose with their KL, so that they can be compared at equal KL.
_FRONT: Final = ("accuracy over KL (1e-3 nats/token)", "accuracy over KL, mnats", "acc over KL")
# Columns of the screen from which on so many charts are shown.
_WIDTHS: Final = (0, 110, 170)


class Overlay(Horizontal):
    """The charts and the options of up to MOST_RUNS runs; nothing without any."""

    def __init__(self) -> None:
        super().__init__()
        self._feeds: dict[Path, RunFeed] = {}
        self._shown: list[RunFeed] = []
        self._drawn: object = None

    def compose(self) -> ComposeResult:
        yield LineChart(_FRONT, name="front")
        for metric, _ in _CHARTS:
            assert metric.chart is not None
            yield LineChart(metric.chart.titles, name=metric.name)
        yield TextPanel("options")

    def show(self, runs: Sequence[RunDir]) -> None:
        """Show these runs, the first as A."""
        feeds = {run.path: self._feeds.get(run.path) or RunFeed(run) for run in runs[:MOST_RUNS]}
        if list(feeds) != [feed.run.path for feed in self._shown]:
            self._show_options([feed.run for feed in feeds.values()])
        self._feeds, self._shown = feeds, list(feeds.values())
        self.poll()

    def poll(self) -> None:
        """Read what the runs' logs brought and draw it."""
        for feed in self._shown:
            feed.poll()
        self._draw()

    def on_resize(self) -> None:
        self._drawn = None
        self._draw()

    def _draw(self) -> None:
        key = tuple((feed.run.path, feed.state.version) for feed in self._shown)
        if key == self._drawn:
            return
        self._drawn = key
        free = sum(self.app.size.width >= width for width in _WIDTHS)
        front, *charts = self.query(LineChart)
        paths = self._paths()
        front.display = len(paths) > 1
        free -= front.display
        front.show(paths, version=key)
        for chart, (metric, reference) in zip(charts, _CHARTS, strict=True):
            series = [
                self._series(index, values)
                for index, feed in enumerate(self._shown)
                if (values := feed.state.train.get(metric.name) or feed.state.evals.get(metric.name))
                is not None
            ]
            chart.display = bool(series) and free > 0
            free -= chart.display
            chart.show(series, () if reference is None else (reference,), version=key)

    def _paths(self) -> list[ChartSeries]:
        """(KL, accuracy) of the evaluations of each run that measured both, up to its largest KL."""
        paths = []
        for index, feed in enumerate(self._shown):
            accuracy, kl = (feed.state.evals.get(name) for name in (ACCURACY, "kl"))
            if accuracy is None or kl is None:
                continue
            _, places, at = np.intersect1d(accuracy.steps, kl.steps, return_indices=True)
            values, kls = accuracy.values[places], kl.values[at] * 1e3
            known = np.isfinite(values) & np.isfinite(kls)
            order = np.argsort(kls[known], kind="stable")
            if len(order):
                colour, kind = _LOOKS[index]
                x, y = kls[known][order], values[known][order]
                paths.append(ChartSeries(_letter(index), x, y, colour, kind))
        return paths

    def _series(self, index: int, values: MetricSeries) -> ChartSeries:
        """The smoothed curve of a metric of the run with this index."""
        colour, kind = _LOOKS[index]
        is_alone = len(self._shown) == 1
        line = smooth(values.values, _SMOOTH)
        name = "" if is_alone else _letter(index)
        return ChartSeries(name, values.steps, values.values, colour, kind, band=is_alone, line=line)

    def _show_options(self, runs: Sequence[RunDir]) -> None:
        panel = self.query_one("#options", TextPanel)
        recipes = [recipe for run in runs if (recipe := _options(run)) is not None]
        title = "options that differ" if len(runs) > 1 else "recipe"
        if not runs or len(recipes) < len(runs):
            panel.show(Text("a recipe.yaml cannot be read" if runs else ""), title)
        elif len(runs) == 1:
            panel.show(
                self._table([""], [(key, [option_words(value)]) for key, value in recipes[0].items()]), title
            )
        elif rows := differing(recipes):
            panel.show(self._table([_letter(index) for index in range(len(runs))], rows), title)
        else:
            panel.show(Text("none: the recipes are the same"), title)

    def _table(self, heads: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> Table:
        palette = app_of(self).palette
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=_KEY_WIDTH)
        for _ in heads:
            table.add_column(overflow="fold")
        if any(heads):
            table.add_row("", *(Text(head, f"bold {palette.rejected}") for head in heads))
        for key, values in rows:
            table.add_row(Text(key, palette.muted), *(Text(printable(value) or "-") for value in values))
        return table


def _letter(index: int) -> str:
    return chr(ord("A") + index)


def _options(run: RunDir) -> dict[str, object] | None:
    try:
        return options_of(run.recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
