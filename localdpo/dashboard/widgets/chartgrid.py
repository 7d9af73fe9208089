"""The charts of a run: pages of them, one alone, zoom, cross-hair, smoothing. All share one step axis."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from textual import events
from textual.app import ComposeResult
from textual.containers import Container

from localdpo.core.text import counted, has_words
from localdpo.dashboard.axes import StepView, right_edge, short_step
from localdpo.dashboard.charts import CHARTS, SMOOTHINGS, Arrays, ChartSpec, available
from localdpo.dashboard.feed import Interval, RunFeed
from localdpo.dashboard.widgets.chart import LineChart

_LEAST: Final = (38, 9)  # the fewest columns and rows of a chart beside others
_MOST_COLUMNS: Final = 4
_PAN: Final = 0.25
# Where a column of dots holds this many steps, one more moves nothing that can be seen: then a second is
# soon enough. What is done with keys and mouse is drawn at once.
_CROWDED: Final = 20
_CROWDED_SECONDS: Final = 1.0


def grid_of(width: int, height: int, charts: int) -> tuple[int, int]:
    """(columns, rows): as many charts on `width` x `height` cells as stay readable, in the rows they need."""
    columns = max(1, min(_MOST_COLUMNS, width // _LEAST[0], charts))
    return columns, max(1, min(height // _LEAST[1], math.ceil(charts / columns)))


class ChartGrid(Container):
    """The charts. Those of which the run has no value are not shown.

    `on_look` is called when page, zoom, cross-hair or smoothing change: `seen` has changed then.

    Attributes:
        weight: of the moving average, 0 for none.
    """

    def __init__(self, on_look: Callable[[], None], id: str | None = None) -> None:
        super().__init__(id=id)
        self._on_look = on_look
        self.weight = SMOOTHINGS[0]
        self._has_log_axis = False
        self._words = ""
        self._page = 0
        self._alone: str | None = None
        self.clear()

    def clear(self) -> None:
        """Forget the run; how charts are looked at stays, but for the steps."""
        self._feed: RunFeed | None = None
        self._arrays = Arrays()
        self._available: list[ChartSpec] = []
        self._specs: list[ChartSpec] = []
        self._view = StepView()
        self._cursor: float | None = None
        self._redraws = Interval(_CROWDED_SECONDS)
        self._has_news = False

    def compose(self) -> ComposeResult:
        for spec in CHARTS:
            yield LineChart(spec.titles, name=spec.name)

    # --- what is shown --------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether there is no chart to draw: the run has no value yet, or none has the words."""
        return not self._specs

    @property
    def filter(self) -> str:
        """The words that the names of a chart or of its metrics must have."""
        return self._words

    @filter.setter
    def filter(self, words: str) -> None:
        self._words = " ".join(words.split())
        if self._feed is not None:
            self.show(self._feed)
        self._on_look()

    @property
    def is_plain(self) -> bool:
        """Whether all charts show all steps without a cross-hair."""
        return self._alone is None and self._cursor is None and self._view == StepView()

    def show(self, feed: RunFeed) -> None:
        """Draw what the run has come to."""
        self._feed = feed
        self._available = available(feed.state)
        specs = [spec for spec in self._available if has_words(spec.words, self._words)]
        self._has_news = True
        if specs != self._specs:
            self._specs = specs
            self._arrange()
            self.draw()
        else:
            self.catch_up()

    def catch_up(self) -> None:
        """Draw what is new, unless a crowded chart was drawn a moment ago; called again a moment later."""
        if not self._has_news:
            return
        left, right = self._window()
        axis = next((chart.axis for chart in self._charts() if chart.axis is not None), None)
        is_crowded = axis is not None and right - left > 2 * axis.columns * _CROWDED
        if not is_crowded or self._redraws.has_passed:
            self.draw()

    def seen(self) -> list[str]:
        """In words: which charts are shown, and how they are looked at."""
        shown = self._shown()
        if not shown:
            return []
        first, count = self._specs.index(shown[0]) + 1, len(self._specs)
        left, right = self._window()
        which = f"chart {first}" if len(shown) == 1 else f"charts {first} to {first + len(shown) - 1}"
        kept = f" with {self._words}, of {len(self._available)}" if self._words else ""
        return [
            (counted(count, "chart") if len(shown) == count else f"{which} of {count}") + kept,
            f"~ smoothed {self.weight:g}" if self.weight else "not smoothed",
            "all steps" if self._view == StepView() else f"steps {short_step(left)} to {short_step(right)}",
            *(["log axis"] if self._has_log_axis else []),
            *([] if self._cursor is None else [f"values at step {short_step(self._cursor)}"]),
        ]

    def on_resize(self, event: events.Resize) -> None:
        self._arrange()
        self.draw()
        self._on_look()

    def _on_page(self) -> int:
        """How many charts a page has."""
        return 1 if self._alone is not None else math.prod(grid_of(*self.size, len(self._specs)))

    def _shown(self) -> list[ChartSpec]:
        """The charts of the page, or the one that is alone."""
        if self._alone is not None:
            return [spec for spec in self._specs if spec.name == self._alone]
        size = self._on_page()
        return self._specs[self._page * size : (self._page + 1) * size]

    def _pages(self) -> int:
        return max(1, math.ceil(len(self._specs) / self._on_page()))

    def _arrange(self) -> None:
        """Show the charts of the page and no others."""
        if self._alone not in [spec.name for spec in self._specs]:
            self._alone = None
        self._page = min(self._page, self._pages() - 1)
        shown = self._shown()
        # The last page may have fewer charts: they take the room of the others.
        columns, rows = (1, 1) if self._alone else grid_of(*self.size, len(shown))
        self.styles.grid_size_columns, self.styles.grid_size_rows = columns, rows
        names = {spec.name for spec in shown}
        for chart in self.query(LineChart):
            chart.display = chart.name in names

    def _extent(self) -> tuple[float, float]:
        """The first and the last step there is to see."""
        if self._feed is None:
            return 0.0, 1.0
        state = self._feed.state
        last = max(
            (series.last_step for table in (state.train, state.evals) for series in table.values()), default=0
        )
        edge = right_edge(last, state.progress.total, self._view.span) if self._feed.alive else float(last)
        return 0.0, max(1.0, edge)

    def _window(self) -> tuple[float, float]:
        return self._view.window(*self._extent())

    def draw(self) -> None:
        """Draw the charts that are shown, those that have something new."""
        feed = self._feed
        if feed is None:
            return
        self._redraws.restart()
        self._has_news = False
        window, specs = self._window(), {spec.name: spec for spec in self._specs}
        for chart in self._charts():
            spec = specs[chart.name or ""]
            chart.show(
                self._arrays.of(spec, feed.state, self.weight),
                spec.references(feed.state),
                (id(feed), self.weight, *self._arrays.version(spec, feed.state)),
                window=window,
                log=self._has_log_axis,
                cursor=self._cursor,
            )

    def _charts(self) -> list[LineChart]:
        names = {spec.name for spec in self._shown()}
        return [chart for chart in self.query(LineChart) if chart.name in names and chart.display]

    def _look(self, *, arranged: bool = False) -> None:
        if arranged:
            self._arrange()
        self.draw()
        self._on_look()

    # --- looking --------------------------------------------------------------------------------------

    def smooth(self) -> None:
        self.weight = SMOOTHINGS[(SMOOTHINGS.index(self.weight) + 1) % len(SMOOTHINGS)]
        self._look()

    def switch_axis(self) -> None:
        self._has_log_axis = not self._has_log_axis
        self._look()

    def zoom(self, closer: bool, around: float | None = None) -> None:
        """See fewer steps, or more; `around` (the cross-hair, if None) stays where it is."""
        self._view = self._view.zoomed(closer, *self._extent(), self._cursor if around is None else around)
        self._look()

    def pan(self, direction: int) -> None:
        self._view = self._view.panned(direction * _PAN, *self._extent())
        self._look()

    def whole(self) -> None:
        self._view = StepView()
        self._look()

    def follow(self) -> None:
        self._cursor = None
        self._view = StepView(self._view.span)
        self._look()

    def point(self, direction: int) -> None:
        """Move the cross-hair by a column (first, to the last step); beyond the edge the charts move."""
        left, right = self._window()
        last = self._feed.state.progress.step if self._feed is not None else 0
        if self._cursor is None:
            self._cursor = min(float(last), math.floor(right))
        else:
            axis = next((chart.axis for chart in self._charts() if chart.axis is not None), None)
            stride = max(1.0, (right - left) / axis.columns if axis is not None else 1.0)
            self._cursor = float(min(max(round(self._cursor + direction * stride), 0), last))
        if not left <= self._cursor <= right:
            self._view = self._view.panned(-_PAN if self._cursor < left else _PAN, *self._extent())
        self._look()

    def choose(self, direction: int) -> None:
        """The chart before or after the chosen one; it takes the place of one that is alone."""
        if self._alone is not None:
            names = [spec.name for spec in self._specs]
            self._alone = names[(names.index(self._alone) + direction) % len(names)]
            self._look(arranged=True)
            self._charts()[0].focus()
            return
        charts = self._charts()
        here = next((index for index, chart in enumerate(charts) if chart.has_focus), None)
        if charts:
            charts[0 if here is None else (here + direction) % len(charts)].focus()

    def maximise(self) -> None:
        """The chosen chart alone (the first, if none is), or all again."""
        charts = self._charts()
        chosen = next((chart for chart in charts if chart.has_focus), charts[0] if charts else None)
        self._alone = chosen.name if self._alone is None and chosen is not None else None
        self._look(arranged=True)

    def turn(self, direction: int) -> None:
        """The next or the previous charts; after the last come the first."""
        if self._alone is not None:
            self.choose(direction)
            return
        self._page = (self._page + direction) % self._pages()
        self._look(arranged=True)

    def back(self) -> None:
        """Undo one thing: cross-hair, then a chart alone, then zoom."""
        if self._cursor is not None:
            self._cursor = None
        elif self._alone is not None:
            self._alone = None
        else:
            self._view = StepView()
        self._look(arranged=True)

    # --- mouse ----------------------------------------------------------------------------------------

    def _step_at(self, event: events.MouseEvent) -> float | None:
        """The step under the mouse; None where it is on no chart."""
        chart, region = self.screen.get_widget_at(event.screen_x, event.screen_y)
        return chart.step_at(event.screen_x - region.x) if isinstance(chart, LineChart) else None

    def on_mouse_move(self, event: events.MouseMove) -> None:
        step = self._step_at(event)
        self._point_at(None if step is None else float(round(step)))

    def on_leave(self) -> None:
        self._point_at(None)

    def _point_at(self, step: float | None) -> None:
        if step != self._cursor:
            self._cursor = step
            self._look()

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.zoom(True, self._step_at(event))

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.zoom(False, self._step_at(event))

    def on_click(self, event: events.Click) -> None:
        """A double click shows the chart alone, or all again; the first click has focused it."""
        if event.chain == 2:
            self.maximise()
