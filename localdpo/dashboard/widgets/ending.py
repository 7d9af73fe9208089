"""How the run ended and what to do next, on every screen while its worker is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.widgets import Static

from localdpo.core.text import printable
from localdpo.launch import ended_lines
from localdpo.out.console import Text

if TYPE_CHECKING:
    from localdpo.dashboard.app import DashboardApp
    from localdpo.dashboard.feed import RunFeed


class Ending(Static):
    """Nothing while the run is alive; then a line on how it ended and one on how to go on."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: tuple[str, tuple[str, ...]] | None = None
        self.display = False

    def show(self, feed: RunFeed) -> None:
        """Say how the run of `feed` ended, if it has."""
        app = cast("DashboardApp", self.app)
        state = feed.state.state(feed.alive)
        if state in ("running", "new") or feed.behind or app.worker_lives:
            self.display, self._shown = False, None
            return
        lines = tuple(ended_lines(feed.run, feed.state.log()))
        if state == "finished":
            # Its last line is a command of some 200 characters, which leaving the dashboard prints.
            lines = ("; ".join(lines[:2]),)
        if (state, lines) == self._shown:
            return
        self._shown = (state, lines)
        self.display = True
        self.update(_worded(lines, app.abilities.mark(state)))
        self.set_classes(f"-{state}")


def _worded(lines: tuple[str, ...], mark: str) -> Text:
    text = Text(no_wrap=False, overflow="fold")
    for number, line in enumerate(lines):
        text.append("\n" if number else "").append(f"{mark} " if number == 0 else "  ", "bold")
        text.append(printable(line), "bold" if number == 0 else "")
    return text
