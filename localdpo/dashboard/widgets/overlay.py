"""Some runs beside each other: their curves in the same charts, and the options in which they differ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

from rich.table import Table
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import Static

from localdpo.core.text import printable
from localdpo.dashboard.feed import RunFeed
from localdpo.dashboard.plot import smooth
from localdpo.dashboard.recipediff import differing, options_of, words
from localdpo.dashboard.series import ChartSeries, Kind, Reference
from localdpo.dashboard.widgets.chart import Chart
from localdpo.out.console import Text
from localdpo.records.metrics import ACCURACY, BY_NAME
from localdpo.records.rundir import RunDir

if TYPE_CHECKING:
    from localdpo.dashboard.app import DashboardApp

# How the runs are told apart, in the order of their letters: by colour and by line.
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
# The metrics with a chart and the value to compare with; the later ones need a wider screen.
_CHARTS: Final = (
    (BY_NAME["rewards/margins"], Reference(0.0)),
    (BY_NAME[ACCURACY], Reference(0.5, "0.5")),
    (BY_NAME["loss"], None),
)
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
        for metric, _ in _CHARTS:
            assert metric.chart is not None
            yield Chart(metric.chart.titles, name=metric.name)
        with VerticalScroll(classes="panel", id="options", can_focus=False):
            yield Static(id="options-text")

    def show(self, runs: Sequence[RunDir]) -> None:
        """Show these runs, the first as A."""
        kept = {run.path: self._feeds.get(run.path) or RunFeed(run) for run in runs[:MOST_RUNS]}
        if list(kept) != [feed.run.path for feed in self._shown]:
            self._show_options([feed.run for feed in kept.values()])
        self._feeds, self._shown = kept, list(kept.values())
        self.poll()

    def poll(self) -> None:
        """Read what the runs' logs brought and draw it."""
        for feed in self._shown:
            feed.poll()
        self._draw()

    def on_resize(self) -> None:
        for place, chart in enumerate(self.query(Chart)):
            chart.display = self.app.size.width >= _WIDTHS[place]

    def _draw(self) -> None:
        key = tuple((feed.run.path, feed.state.version) for feed in self._shown)
        if key == self._drawn:
            return
        self._drawn = key
        for chart, (metric, reference) in zip(self.query(Chart), _CHARTS, strict=True):
            series = [
                one
                for place, feed in enumerate(self._shown)
                if (one := self._series(place, feed, metric.name)) is not None
            ]
            chart.show(series, () if reference is None else (reference,), version=key)

    def _series(self, place: int, feed: RunFeed, metric: str) -> ChartSeries | None:
        """The smoothed course of a metric over the steps; None where the log has none of it."""
        found = feed.state.train.get(metric) or feed.state.evals.get(metric)
        if found is None:
            return None
        colour, kind = _LOOKS[place]
        name = chr(ord("A") + place) if len(self._shown) > 1 else ""
        values = found.values
        is_alone = len(self._shown) == 1
        line = smooth(values, _SMOOTH)
        return ChartSeries(name, found.steps, values, colour, kind, band=is_alone, line=line)

    def _show_options(self, runs: Sequence[RunDir]) -> None:
        panel, text = self.query_one("#options"), self.query_one("#options-text", Static)
        recipes = [_options(run) for run in runs]
        panel.border_title = "options that differ" if len(runs) > 1 else "recipe"
        known = [recipe for recipe in recipes if recipe is not None]
        if not runs or len(known) < len(recipes):
            text.update(Text("a recipe.yaml cannot be read" if runs else ""))
        elif len(runs) == 1:
            text.update(self._table([""], [(key, [words(value)]) for key, value in known[0].items()]))
        else:
            letters = [chr(ord("A") + place) for place in range(len(runs))]
            rows = differing(known)
            text.update(self._table(letters, rows) if rows else Text("none: the recipes are the same"))

    def _table(self, heads: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> Table:
        palette = cast("DashboardApp", self.app).palette
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True, overflow="ellipsis", max_width=_KEY_WIDTH)
        for _ in heads:
            table.add_column(overflow="fold")
        if any(heads):
            table.add_row("", *(Text(head, f"bold {palette.rejected}") for head in heads))
        for key, values in rows:
            table.add_row(Text(key, palette.muted), *(Text(printable(value) or "-") for value in values))
        return table


def _options(run: RunDir) -> dict[str, object] | None:
    try:
        return options_of(run.recipe.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
