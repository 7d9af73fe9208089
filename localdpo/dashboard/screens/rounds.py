"""Rounds: a series of runs, round by round: win rates with their intervals, KL and length of the answers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, ClassVar, Final, cast

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import VerticalScroll
from textual.screen import Screen
from textual.widgets import Static

from localdpo.core.errors import UserError
from localdpo.core.text import printable
from localdpo.dashboard.keymap import bindings_of
from localdpo.dashboard.screens.dialogs import ChoiceDialog, DialogChoice
from localdpo.dashboard.widgets.bars import KeyBar, TopBar
from localdpo.dashboard.widgets.basic import ListTable
from localdpo.dashboard.widgets.evaluation import RatesStyle, interval_bar
from localdpo.launch.processes import Job
from localdpo.out.console import Text
from localdpo.records.evaluations import RateEstimate
from localdpo.records.series import (
    HEADINGS,
    RoundResult,
    SeriesDir,
    SeriesRecord,
    cells,
    closing_lines,
    rate_text,
    read_record,
    stage_of,
)

if TYPE_CHECKING:
    from localdpo.dashboard.app import DashboardApp

_LOOK_SECONDS: Final = 1.0
# Below so many columns the number of pairs is left out.
_NARROW: Final = 92
_BAR: Final = (12, 48)
STOP_CHOICES: Final = (
    DialogChoice(
        "s", "stop", "stop; a training saves first, and the series goes on there when it is resumed"
    ),
    DialogChoice("c", "cancel", "cancel: the rounds continue"),
)


class RoundsScreen(Screen[None]):
    """The rounds of a series, up to date while it is made; Enter opens the run of a round."""

    BINDINGS: ClassVar[list[BindingType]] = bindings_of("rounds")

    def __init__(self, series: SeriesDir, maker: Job | None = None) -> None:
        super().__init__()
        self.series, self._maker = series, maker
        self._record = SeriesRecord(0)
        self._drawn: object = None

    @property
    def dashboard(self) -> DashboardApp:
        """The app, with its type."""
        return cast("DashboardApp", self.app)

    def compose(self) -> ComposeResult:
        yield TopBar("runs")
        yield Static(id="series")
        yield ListTable(id="rounds", cursor_type="row")
        with VerticalScroll(id="figures-of-rounds", can_focus=False):
            yield Static(id="bars-of-rounds")
        yield KeyBar("rounds")

    def on_mount(self) -> None:
        self.set_class(not self.dashboard.abilities.unicode, "-ascii")
        self.query_one(ListTable).focus()
        self._look()
        self.set_interval(_LOOK_SECONDS, self._look)

    def on_resize(self) -> None:
        self._drawn = None
        self._look()

    def action_open(self) -> None:
        """Open the run of the selected round."""
        members = self.series.members()
        row = self.query_one(ListTable).cursor_row
        if 0 <= row < len(members):
            self.dashboard.attach(members[row])

    def on_data_table_row_selected(self) -> None:
        self.action_open()

    def action_close(self) -> None:
        """Back to the runs."""
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

    def _look(self) -> None:
        if not self.size.width:
            return
        try:
            self._record = read_record(self.series)
            stage = stage_of(self.series, self._record)
            if self._maker is not None and not self.series.is_running():
                stage = "starting" if self._maker.is_running else self._maker.problem() or stage
        except UserError as error:
            stage = str(error)
        members = [run.name for run in self.series.members()]
        now = (self._record, stage, members, self.size)
        if now == self._drawn:
            return
        self._drawn = now
        palette = self.dashboard.palette
        title = Text.assemble(
            (f"{printable(self.series.name)}  ", "bold"), (printable(stage), palette.chosen)
        )
        for line in closing_lines(self._record):
            title.append(f"\n{printable(line)}")
        self.query_one("#series", Static).update(title)
        self._fill(members)
        self.query_one("#bars-of-rounds", Static).update(self._bars())

    def _fill(self, members: Sequence[str]) -> None:
        table = self.query_one(ListTable)
        row = max(0, table.cursor_row)
        kept = [i for i, name in enumerate(HEADINGS) if name != "pairs" or self.size.width >= _NARROW]
        done = {result.name: cells(result) for result in self._record.rounds}
        rows = [done.get(name, (name, *[""] * (len(HEADINGS) - 1))) for name in members]
        table.clear(columns=True)
        for i in kept:
            width = max(len(values[i]) for values in (HEADINGS, *rows))
            table.add_column(Text(HEADINGS[i], justify="left" if i == 0 else "right"), width=width)
        for values in rows:
            table.add_row(*(Text(values[i], justify="left" if i == 0 else "right") for i in kept))
        if members:
            table.move_cursor(row=min(row, len(members) - 1))

    def _bars(self) -> Text:
        """Three groups of a bar for each round."""
        rounds = self._record.rounds
        text = Text(no_wrap=True, overflow="ellipsis")
        if not rounds:
            return text.append("no round is done yet", self.dashboard.palette.muted)
        width = max(_BAR[0], min(_BAR[1], self.size.width - 40))
        style = RatesStyle(self.dashboard.palette, self.dashboard.abilities, width)

        def group(
            title: str, bar: Callable[[RoundResult], Text], words: Callable[[RoundResult], str]
        ) -> None:
            text.append(f"{title}\n", "bold")
            for result in rounds:
                text.append(f" {result.name:<9}").append_text(bar(result)).append(f" {words(result)}\n")

        def win(rate: RateEstimate | None) -> Text:
            return Text(" " * width) if rate is None else interval_bar(rate, width, style)

        def bar(value: float, most: float) -> Text:
            sign = "█" if style.abilities.unicode else "#"
            filled = round(width * max(0.0, value) / most) if most > 0 else 0
            return Text((sign * filled).ljust(width), style.palette.chosen)

        kl, tokens = (max(getattr(result, name) for result in rounds) for name in ("kl", "tokens"))
        group("win rate against the round before", lambda one: win(one.last), lambda one: rate_text(one.last))
        group("win rate against the start", lambda one: win(one.first), lambda one: rate_text(one.first))
        group("KL from the start, nats", lambda one: bar(one.kl, kl), lambda one: cells(one)[4])
        group("tokens of an answer", lambda one: bar(one.tokens, tokens), lambda one: cells(one)[5])
        return text
