"""Rounds: a series of runs, round by round: win rates with their intervals, KL and length of the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from localdpo.dashboard.screens.series import SeriesScreen, SeriesTable
from localdpo.dashboard.widgets.evaluation import RatesStyle, interval_bar
from localdpo.out.console import Text
from localdpo.records.evaluations import RateEstimate
from localdpo.records.series import (
    HEADINGS,
    RoundResult,
    RoundsDir,
    SeriesRecord,
    cells,
    closing_lines,
    rate_text,
    read_record,
    stage_of,
)

_BAR: Final = (12, 48)


class RoundsScreen(SeriesScreen):
    """The rounds of a series."""

    series: RoundsDir
    _record = SeriesRecord(0)

    def look(self) -> SeriesTable:
        self._record = read_record(self.series)
        done = {result.name: cells(result) for result in self._record.rounds}
        names = [run.name for run in self.series.members()]
        rows = [done.get(name, (name, *[""] * (len(HEADINGS) - 1))) for name in names]
        stage, lines = stage_of(self.series, self._record), closing_lines(self._record)
        return SeriesTable(stage, lines, HEADINGS, rows, frozenset({"pairs"}))

    def figures(self) -> Widget:
        bars = VerticalScroll(Static(id="bars-of-rounds"), id="figures-of-rounds")
        bars.can_focus = False
        return bars

    def draw(self) -> None:
        self.query_one("#bars-of-rounds", Static).update(self._bars())

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
