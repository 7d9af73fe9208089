"""The log of a run as lines to read: the newest at the bottom, filtered by words, followed to its end."""

from __future__ import annotations

import time
from typing import ClassVar, Final

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.strip import Strip
from textual.widget import Widget

from localdpo.core.text import has_words, printable
from localdpo.dashboard.appbase import app_of
from localdpo.dashboard.picture import fitted
from localdpo.dashboard.state import LOG_LINES, STEP_LINES, RunState
from localdpo.records.events import Event
from localdpo.records.metrics import metrics_of
from localdpo.records.wording import format_event, format_headline

_KEPT: Final = LOG_LINES + STEP_LINES
# Lines above that until the oldest are cut: cutting them one at a time would cost more.
_SLACK: Final = 500
_WHEEL: Final = 3
_COLOURS: Final = {"step": "muted", "run.crashed": "critical", "run.failed": "critical"}
_LEVEL_COLOURS: Final = {"warning": "rejected", "critical": "critical"}


def log_line(event: Event, total: int | None) -> str:
    """`14:02:14 step 1204 loss 0.512 accuracy 0.75 margin 0.91 KL 9.4 lr 5e-06 tokens/s 1846`; local time."""
    when = time.strftime("%H:%M:%S", time.localtime(event.time))
    if metrics_of(event):
        words = format_event(event, None)
    else:
        words = format_headline(event, total) or format_event(event, total)
    return f"{when} {'notice ' if event.type == 'notice' else ''}{printable(words or event.type)}"


def colour_of(event: Event) -> str:
    """The palette's name of the colour that an event's line has."""
    if event.type == "notice":
        return _LEVEL_COLOURS.get(str(event.data.get("level")), "ink")
    return _COLOURS.get(event.type, "ink")


# A line of the log and the palette's name of its colour; its event, ten times as large, is not kept.
LogLine = tuple[str, str]


class LogView(Widget, can_focus=True):
    """The lines. It scrolls on its own: Textual's scrolling lays out the whole screen for every new line.

    `follow`: whether the newest line stays visible.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "scroll_by(-1)", show=False),
        Binding("down", "scroll_by(1)", show=False),
    ]

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self.follow = True
        self._lines: list[LogLine] = []
        self._shown: list[LogLine] = []
        self._seen = 0
        self._words = ""
        self._top = 0

    @property
    def filter(self) -> str:
        """The words that a line must have, all of them, in upper or lower case."""
        return self._words

    @filter.setter
    def filter(self, text: str) -> None:
        self._words = " ".join(text.split())
        self._choose()
        self.go_to_end()

    @property
    def count(self) -> tuple[int, int]:
        """(lines shown, lines kept)."""
        return len(self._shown), len(self._lines)

    def show(self, state: RunState) -> None:
        """Take in what the run's log brought since the last time."""
        fresh = state.log_since(self._seen)
        if not fresh:
            return
        self._seen = fresh[-1][0]
        total = state.progress.total
        lines = [(log_line(event, total), colour_of(event)) for _, event in fresh]
        self._lines += lines
        if len(self._lines) > _KEPT + _SLACK:
            del self._lines[:-_KEPT]
            before = len(self._shown)
            self._choose()
            self._top = max(0, self._top - (before - len(self._shown)))
        else:
            self._shown += [line for line in lines if has_words(line[0], self._words)]
        self.refresh()

    def clear(self) -> None:
        """Forget everything: another run follows."""
        self._lines, self._shown, self._seen = [], [], 0
        self.go_to_end()

    def go_to_end(self) -> None:
        """Show the newest line, and stay with it."""
        self.follow = True
        self.refresh()

    def action_scroll_by(self, lines: int) -> None:
        """Scroll by lines, up if negative. Who comes to the end follows it."""
        last = max(0, len(self._shown) - self.size.height)
        top = min(max(self._first() + lines, 0), last)
        self._top, self.follow = top, top >= last
        self.refresh()

    def page(self, pages: int) -> None:
        """Scroll by pages, up if negative."""
        self.action_scroll_by(pages * max(1, self.size.height - 1))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self.action_scroll_by(-_WHEEL)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self.action_scroll_by(_WHEEL)

    def render_line(self, y: int) -> Strip:
        app = app_of(self)
        index, width = self._first() + y, self.size.width
        ground = Style(color=app.palette.ink, bgcolor=app.palette.ground)
        if index >= len(self._shown):
            return Strip([Segment(" " * width, ground)], width)
        line, colour = self._shown[index]
        text = fitted(" " + line, width, app.abilities.ellipsis)
        style = ground + Style(color=getattr(app.palette, colour))
        return Strip([Segment(text, style), Segment(" " * (width - cell_len(text)), ground)], width)

    def _first(self) -> int:
        """The index of the line in the first row."""
        last = max(0, len(self._shown) - self.size.height)
        return last if self.follow else min(self._top, last)

    def _choose(self) -> None:
        self._shown = [line for line in self._lines if has_words(line[0], self._words)]
