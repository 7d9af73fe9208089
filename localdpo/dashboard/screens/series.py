"""The screens of a series: what it does now, its runs as a table, and below that the figures of its kind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Final, cast

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widget import Widget
from textual.widgets import Static

from localdpo.core.errors import UserError
from localdpo.core.text import printable
from localdpo.dashboard.keymap import bindings_of
from localdpo.dashboard.screens.dialogs import ChoiceDialog
from localdpo.dashboard.widgets.bars import KeyBar, TopBar
from localdpo.dashboard.widgets.basic import ListTable
from localdpo.dashboard.widgets.evaluation import RatesStyle, interval_bar
from localdpo.dashboard.widgets.overlay import MOST_RUNS, Overlay
from localdpo.launch.processes import Job
from localdpo.out.console import Text
from localdpo.records import series as rounds
from localdpo.records import sweeps
from localdpo.records.evaluations import RateEstimate
from localdpo.records.rundir import RunDir

if TYPE_CHECKING:
    from localdpo.dashboard.app import DashboardApp

_LOOK_SECONDS: Final = 1.0
# Columns of the screen below which a table is narrow.
_NARROW: Final = 92
STOP_CHOICES: Final = (
    ("s", "stop", "stop; a training saves first, and the series goes on there when it is resumed"),
    ("c", "cancel", "cancel: the series continues"),
)


@dataclass(frozen=True)
class SeriesTable:
    """What is shown of a series: its stage, lines below, headings and rows of its runs' table.

    `narrow`: headings of columns that a narrow table leaves out. The first cell of a row is a run's name.
    """

    stage: str
    lines: Sequence[str]
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    narrow: frozenset[str] = frozenset()


class SeriesScreen(Screen[None]):
    """A series, up to date while it is made; Enter opens the run of the selected row."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_of("series")

    def __init__(self, series: rounds.SeriesDir, maker: Job | None = None) -> None:
        super().__init__()
        self.series, self._maker = series, maker
        self._table = SeriesTable("", (), (), ())
        self._drawn: object = None

    @property
    def dashboard(self) -> DashboardApp:
        return cast("DashboardApp", self.app)

    def look(self) -> SeriesTable:
        """What the folder holds now. Raises UserError for damage."""
        raise NotImplementedError

    def figures(self) -> Widget:
        """What is below the table."""
        raise NotImplementedError

    def draw(self) -> None:
        """Bring the figures up to date with the last look."""
        raise NotImplementedError

    def poll(self) -> None:
        """Called once a second while the table stays as it is."""

    def compose(self) -> ComposeResult:
        yield TopBar("runs")
        yield Static(id="series")
        yield ListTable(id="members", cursor_type="row")
        yield self.figures()
        yield KeyBar("series")

    def on_mount(self) -> None:
        self.set_class(not self.dashboard.abilities.unicode, "-ascii")
        self.query_one(ListTable).focus()
        self.refresh_look()
        self.set_interval(_LOOK_SECONDS, self.refresh_look)

    def on_resize(self) -> None:
        self._drawn = None
        self.refresh_look()

    def action_open(self) -> None:
        row = self.query_one(ListTable).cursor_row
        if 0 <= row < len(self._table.rows):
            run = RunDir(self.series.path / self._table.rows[row][0])
            if run.exists():
                self.dashboard.attach(run, series=self.series, maker=self._maker)

    def on_data_table_row_selected(self) -> None:
        self.action_open()

    def action_close(self) -> None:
        self.dashboard.action_go("runs")

    def action_stop(self) -> None:
        """Ask whether to stop the process that makes the series."""
        if not self.series.is_running():
            self.notify(f"{self.series.name} is not being made; nothing to stop", severity="warning")
            return

        def answered(choice: str | None) -> None:
            pid = self.series.pid()
            if choice == "stop" and pid is not None and self.series.is_running():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)

        question = ChoiceDialog(f"Stop {self.series.name}?", "It can be resumed later.", STOP_CHOICES)
        self.app.push_screen(question, answered)

    # --- drawing --------------------------------------------------------------------------------------

    def refresh_look(self) -> None:
        """Look at the folder, and draw what changed."""
        if not self.size.width:
            return
        try:
            table = self.look()
        except UserError as error:
            table = replace(self._table, stage=str(error))
        if self._maker is not None and not self.series.is_running():
            if self._maker.is_running:
                # What a stopped series says of going on does not hold for one that is about to.
                table = replace(table, stage="starting", lines=())
            else:
                table = replace(table, stage=self._maker.problem() or table.stage)
        if (table, self.size) == self._drawn:
            self.poll()
            return
        self._table, self._drawn = table, (table, self.size)
        title = Text.assemble(
            (f"{printable(self.series.name)}  ", "bold"),
            (printable(table.stage), self.dashboard.palette.chosen),
        )
        for line in table.lines:
            title.append(f"\n{printable(line)}")
        self.query_one("#series", Static).update(title)
        self._fill(table)
        self.draw()

    def _fill(self, shown: SeriesTable) -> None:
        table = self.query_one(ListTable)
        row = max(0, table.cursor_row)
        is_narrow = self.size.width < _NARROW
        kept = [i for i, name in enumerate(shown.headings) if not (is_narrow and name in shown.narrow)]
        table.clear(columns=True)
        for i in kept:
            width = max(len(values[i]) for values in (shown.headings, *shown.rows))
            table.add_column(Text(shown.headings[i], justify="left" if i == 0 else "right"), width=width)
        for values in shown.rows:
            table.add_row(*(Text(values[i], justify="left" if i == 0 else "right") for i in kept))
        if shown.rows:
            table.move_cursor(row=min(row, len(shown.rows) - 1))


_BAR: Final = (12, 48)


class RoundsScreen(SeriesScreen):
    """The rounds of a series."""

    series: rounds.RoundsDir
    _record = rounds.SeriesRecord(0)

    def look(self) -> SeriesTable:
        self._record = rounds.read_record(self.series)
        done = {result.name: rounds.cells(result) for result in self._record.rounds}
        names = [run.name for run in self.series.members()]
        rows = [done.get(name, (name, *[""] * (len(rounds.HEADINGS) - 1))) for name in names]
        stage, lines = rounds.stage_of(self.series, self._record), rounds.closing_lines(self._record)
        return SeriesTable(stage, lines, rounds.HEADINGS, rows, frozenset({"pairs"}))

    def figures(self) -> Widget:
        bars = VerticalScroll(Static(id="bars-of-rounds"), id="figures-of-rounds")
        bars.can_focus = False
        return bars

    def draw(self) -> None:
        self.query_one("#bars-of-rounds", Static).update(self._bars())

    def _bars(self) -> Text:
        """A bar for each round in four groups, two beside each other; the table has the figures."""
        done = self._record.rounds
        if not done:
            return Text("no round is done yet", self.dashboard.palette.muted)
        width = max(_BAR[0], min(_BAR[1], self.size.width // 2 - 13))
        style = RatesStyle(self.dashboard.palette, self.dashboard.abilities, width)

        def group(title: str, bar: Callable[[rounds.RoundResult], Text]) -> list[Text]:
            lines = [Text(title, "bold"), *(Text.assemble(f" {one.name:<9}", bar(one)) for one in done)]
            for line in lines:
                line.truncate(width + 12, pad=True)
            return lines

        def win(rate: RateEstimate | None) -> Text:
            return Text() if rate is None else interval_bar(rate, width, style)

        def bar(value: float, most: float) -> Text:
            sign = "█" if style.abilities.unicode else "#"
            filled = round(width * max(0.0, value) / most) if most > 0 else 0
            return Text(sign * filled, style.palette.chosen)

        kl, tokens = max(one.kl for one in done), max(one.tokens for one in done)
        left = group("win rate against the round before", lambda one: win(one.last))
        left += group("KL from the start, nats", lambda one: bar(one.kl, kl))
        right = group("win rate against the start", lambda one: win(one.first))
        right += group("tokens of an answer", lambda one: bar(one.tokens, tokens))
        text = Text()
        for one, other in zip(left, right, strict=True):
            text.append_text(one).append_text(other).append("\n")
        return text


class SweepScreen(SeriesScreen):
    """The runs of a sweep; those around the selected one are overlaid below."""

    series: sweeps.SweepDir

    def look(self) -> SeriesTable:
        results = sweeps.results_of(self.series)
        headings, rows = sweeps.table_of(results)
        # What the best is the best by, at which KL.
        rest = frozenset(headings[2:]) - {sweeps.RANKED[results.best_by][0], "KL", ""}
        stage, lines = sweeps.stage_of(self.series, results), sweeps.closing_lines(self.series, results)
        return SeriesTable(stage, lines, headings, rows, rest)

    def figures(self) -> Widget:
        return Overlay()

    def draw(self) -> None:
        rows = self._table.rows
        first = max(0, min(self.query_one(ListTable).cursor_row, len(rows) - MOST_RUNS))
        runs = (RunDir(self.series.path / row[0]) for row in rows[first : first + MOST_RUNS])
        self.query_one(Overlay).show([run for run in runs if run.exists()])

    def poll(self) -> None:
        self.query_one(Overlay).poll()

    def on_data_table_row_highlighted(self) -> None:
        self.draw()
