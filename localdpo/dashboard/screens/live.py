"""Live: what the run is doing now. Notices, figures, charts, log."""

from __future__ import annotations

from typing import Any, Final

from textual.app import ComposeResult
from textual.widgets import Input

from localdpo.core.text import counted
from localdpo.dashboard.feed import Interval, RunFeed
from localdpo.dashboard.screens.base import RunScreen
from localdpo.dashboard.screens.dialogs import NoticesScreen
from localdpo.dashboard.widgets.basic import TextLine
from localdpo.dashboard.widgets.chartgrid import ChartGrid
from localdpo.dashboard.widgets.log import LogView
from localdpo.dashboard.widgets.notices import NoticeLine, alarms, distinct
from localdpo.dashboard.widgets.tiles import SystemRow, TileRow, tiles_of
from localdpo.records.events import Notice
from localdpo.records.wording import PHASES

_TALL: Final = 30  # rows of the terminal from which tiles have boxes and a notice says why
_LOG_ROWS: Final = ((48, 10), (32, 5))  # (rows of the terminal from which the log is open, its rows)
# Seconds between two frames while a long log is still being read: drawing must not hold up the reading.
_READING_SECONDS: Final = 0.25


class LiveScreen(RunScreen):
    """The first screen of a run."""

    NAME = "live"
    CSS_PATH = "../styles/live.tcss"
    AUTO_FOCUS = ""

    def __init__(self) -> None:
        super().__init__()
        self._wants_log: bool | None = None
        self._frames = Interval(_READING_SECONDS)
        self._has_news = False
        self._is_frozen = False

    def body(self) -> ComposeResult:
        yield NoticeLine(id="notice")
        yield TileRow(id="tiles")
        yield SystemRow(id="system")
        yield TextLine(id="waiting")
        yield ChartGrid(self._draw_seen, id="charts")
        yield TextLine(id="seen")
        yield LogView(id="log")
        for name, what in (("metric-filter", "the name of a chart or tile"), ("filter", "a line of the log")):
            yield Input(placeholder=f"words that {what} must have; enter closes this, esc clears", id=name)

    def on_mount(self) -> None:
        self._charts, self._log = self.query_one(ChartGrid), self.query_one(LogView)
        self._arrange()

    def on_resize(self) -> None:
        self._arrange()

    # --- drawing --------------------------------------------------------------------------------------

    def show(self, feed: RunFeed) -> None:
        self._has_news = True
        self._catch_up()

    def tick(self, now: float) -> None:
        self._catch_up()
        self._draw_notices(now)
        if not self._is_frozen:
            self._charts.catch_up()
            self.query_one(SystemRow).poll(self._worker_pid())

    def _catch_up(self) -> None:
        """Draw what is new; while a long log is being read, not more often than _READING_SECONDS."""
        feed = self.feed
        if not self._has_news or feed is None or self._is_frozen:
            return
        if feed.behind and not self._frames.has_passed:
            return
        self._frames.restart()
        self._has_news = False
        self._draw_tiles()
        self._log.show(feed.state)
        self._charts.show(feed)
        self._draw_notices(self.dashboard.now())
        self._draw_seen()

    def _draw_tiles(self) -> None:
        if self.feed is not None:
            tiles = tiles_of(self.feed.state, self._charts.weight, self._charts.filter)
            self.query_one("#tiles", TileRow).show(tiles)

    def reset(self) -> None:
        self.query_one(NoticeLine).clear()
        self._frames.expire()
        self._is_frozen = False
        self._charts.clear()
        self._log.clear()

    def _arrange(self) -> None:
        """Give the parts their rows, from the size of the terminal."""
        height = self.size.height
        for name in ("#notice", "#tiles", "#system"):
            self.query_one(name).set_class(height >= _TALL, "-tall")
        rows = self._log_rows()
        self._log.display = rows > 0
        self._log.styles.height = rows

    def _log_rows(self) -> int:
        height = self.size.height
        usual = next((rows for least, rows in _LOG_ROWS if height >= least), 0)
        if self._wants_log is None:
            return usual
        return max(usual, 4, height // 4) if self._wants_log else 0

    def _draw_seen(self) -> None:
        """The line below the charts: what they show, and the log."""
        feed = self.feed
        if feed is None:
            return
        is_empty = self._charts.is_empty
        waiting = self.query_one("#waiting", TextLine)
        waiting.display, self._charts.display = is_empty, not is_empty
        if is_empty:
            filtered = self._charts.filter if feed.state.train else ""
            phase = PHASES[feed.state.progress.phase]
            waiting.show(f"No chart has {filtered} in its name." if filtered else f"No step yet: {phase}.")
        words = self._charts.seen()
        if self._log.filter:
            lines, kept = self._log.count
            words.append(f"log: {lines:,} of {counted(kept, 'line')} with {self._log.filter}")
        elif self._log.display and not self._log.follow:
            words.append("log: end goes to the newest line")
        if self._is_frozen:
            words.insert(0, "frozen: space resumes")
        text = (" · " if self.abilities.unicode else " | ").join(words)
        self.query_one("#seen", TextLine).show(text)

    def _draw_notices(self, now: float) -> None:
        self.query_one(NoticeLine).show(self._notices(now))

    def _notices(self, now: float) -> list[Notice]:
        feed = self.feed
        return [] if feed is None else distinct([*feed.state.notices, *alarms(feed.state, feed.alive, now)])

    # --- charts ---------------------------------------------------------------------------------------

    def action_freeze(self) -> None:
        """Freeze everything below the header, or resume."""
        self._is_frozen = not self._is_frozen
        self._catch_up()
        self._draw_seen()

    def action_system(self) -> None:
        row = self.query_one(SystemRow)
        row.display = not row.display
        row.poll(self._worker_pid())

    def _worker_pid(self) -> int | None:
        return self.feed.run.pid() if self.feed is not None and self.feed.alive else None

    def action_charts(self, method: str, *values: Any) -> None:
        """What a key does with the charts: a method of ChartGrid."""
        getattr(self._charts, method)(*values)
        self._draw_tiles()

    # --- notices and log ------------------------------------------------------------------------------

    def action_acknowledge(self) -> None:
        """Take note of the notice that is shown; the next one takes its place."""
        self.query_one(NoticeLine).acknowledge()
        self._draw_notices(self.dashboard.now())

    def action_notices(self) -> None:
        self.app.push_screen(NoticesScreen(self._notices(self.dashboard.now())))

    def action_log(self) -> None:
        self._wants_log = not self._log.display
        self._arrange()
        self._draw_seen()

    def action_filter(self, name: str) -> None:
        """Ask for words for charts and tiles (`metric-filter`), or for lines of the log (`filter`)."""
        if name == "filter" and not self._log.display:
            self.action_log()
        entry = self.query_one(f"#{name}", Input)
        entry.display = True
        self.set_focus(entry)

    def on_input_changed(self, event: Input.Changed) -> None:
        if event.input.id == "filter":
            self._log.filter = event.value
        else:
            self._charts.filter = event.value
            self._draw_tiles()
        self._draw_seen()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.input.display = False
        self.set_focus(None)

    def action_scroll_log(self, pages: int) -> None:
        self._log.page(pages)
        self._draw_seen()

    def action_follow(self) -> None:
        """The newest of everything, and stay with it."""
        if self._is_frozen:
            self.action_freeze()
        self._log.go_to_end()
        self._charts.follow()

    def action_back(self) -> None:
        """Undo one thing: the freeze, the filter, what was done to the charts, the choice of one. Where
        nothing is left, back to the series.
        """
        entries = self.query(Input)
        entry = next((entry for entry in entries if entry.has_focus), None) or next(
            (entry for entry in entries if entry.display or entry.value), None
        )
        if self._is_frozen:
            self.action_freeze()
        elif entry is not None:
            entry.value = ""
            entry.display = False
            self.set_focus(None)
        elif not self._charts.is_plain:
            self._charts.back()
        elif self.focused is not None:
            self.set_focus(None)
        else:
            self.dashboard.back_to_series()
