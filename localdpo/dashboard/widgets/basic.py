"""Widgets that several screens share: a line, a table of rows to choose from, a framed text that scrolls,
and a slider over the evaluations of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rich.console import RenderableType
from textual import events
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import DataTable, Static

from localdpo.dashboard.appbase import app_of
from localdpo.out.console import Text


class TextLine(Static):
    """One line of text, whose change does not lay out the whole screen again."""

    _shown = ""

    def show(self, text: str) -> None:
        if text != self._shown:
            self._shown = text
            self.update(Text(text, no_wrap=True, overflow="ellipsis"), layout=False)


class ListTable(DataTable[Any], inherit_bindings=False):
    """Textual's table without its keys but up and down, so that the table of keys holds for the screen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "cursor_up", show=False),
        Binding("down", "cursor_down", show=False),
    ]

    def move_by(self, rows: int) -> None:
        """Move the cursor down by so many rows (up if negative), at most to the last or the first."""
        if self.row_count:
            self.move_cursor(row=min(max(self.cursor_row + rows, 0), self.row_count - 1))


class TextPanel(VerticalScroll, can_focus=False, inherit_bindings=False):
    """A framed text that scrolls. It can be filled before it is mounted.

    Keys are the screen's, unless it was entered: then they scroll this panel alone, until it is left.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "scroll_up", show=False),
        Binding("down", "scroll_down", show=False),
        Binding("pageup", "page_up", show=False),
        Binding("pagedown", "page_down", show=False),
        Binding("escape", "leave", show=False),
    ]

    def __init__(self, id: str) -> None:
        self._body = Static()
        self._before: Widget | None = None
        super().__init__(self._body, id=id, classes="panel")

    def enter(self) -> None:
        """Give it the keys."""
        self._before = self.screen.focused
        self.can_focus = True
        self.focus()

    def action_leave(self) -> None:
        """Give the keys back to what had them before."""
        self.screen.set_focus(self._before)

    def on_blur(self) -> None:
        self.can_focus = False

    def show(self, body: RenderableType, title: str | Text = "", subtitle: str | Text = "") -> None:
        """Show `body`, with `title` in the upper and `subtitle` in the lower line of the frame."""
        # As texts: Textual would parse a str as markup.
        self.border_title = Text(title) if isinstance(title, str) else title
        self.border_subtitle = Text(subtitle) if isinstance(subtitle, str) else subtitle
        self._body.update(body)

    def scroll_pages(self, pages: int) -> None:
        """Scroll down by so many pages, up if negative."""
        self.scroll_relative(y=pages * max(1, self.size.height - 1), animate=False)


class Walk:
    """The selected step in a growing list; it follows the newest until it is moved. Pure."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._chosen: int | None = None

    @property
    def index(self) -> int | None:
        """Index of the selected step, None without steps."""
        if not self.steps:
            return None
        if self._chosen is None:
            return len(self.steps) - 1
        later = [index for index, step in enumerate(self.steps) if step >= self._chosen]
        return later[0] if later else len(self.steps) - 1

    @property
    def step(self) -> int | None:
        return None if self.index is None else self.steps[self.index]

    def extend(self, steps: Sequence[int]) -> None:
        """Set the steps, in order. If a resume dropped the selected one, the next is selected."""
        self.steps = list(steps)

    def move(self, by: int) -> None:
        """Select the step so many further on; at the newest it follows again."""
        if self.index is not None:
            self.to(self.index + by)

    def to(self, index: int) -> None:
        """Select the step at `index`, or the nearest there is."""
        if self.steps:
            index = min(max(index, 0), len(self.steps) - 1)
            self._chosen = None if index == len(self.steps) - 1 else self.steps[index]

    def newest(self) -> None:
        """Follow the newest step."""
        self._chosen = None


class StepSlider(Widget):
    """`step 40   +---+---O---+   3 of 4, newest`. A click on a stop goes there."""

    class Moved(Message):
        """A click asked for the step at `index`."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    def __init__(self) -> None:
        super().__init__()
        self._walk = Walk()
        self._stops: list[int] = []
        self._note = ""

    def show(self, walk: Walk, note: str = "") -> None:
        """Show `walk`, and `note` at the end of the line; alone where there is no step."""
        self._walk, self._note = walk, note
        self.refresh()

    def render(self) -> Text:
        app = app_of(self)
        palette, mark = app.palette, app.abilities.mark
        index = self._walk.index
        if index is None:
            self._stops = []
            return Text(self._note, palette.muted, no_wrap=True, overflow="ellipsis")
        steps = self._walk.steps
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"step {steps[index]} ".ljust(len(f"step {steps[-1]} ")), "bold")
        newest = ", newest" if index == len(steps) - 1 else ""
        tail = f" {index + 1} of {len(steps)}{newest}{'   ' + self._note if self._note else ''}"
        width = min(60, max(8, self.size.width - line.cell_len - len(tail) - 1))
        self._stops = spread(len(steps), width, line.cell_len)
        start = line.cell_len
        stops = set(self._stops)
        for column in range(start, start + width):
            if column == self._stops[index]:
                line.append(mark("here"), f"bold {palette.chosen}")
            elif column <= self._stops[index]:
                line.append(mark("stop" if column in stops else "done"), palette.chosen)
            else:
                line.append(mark("stop" if column in stops else "todo"), palette.muted)
        return line.append(tail, palette.muted)

    def on_click(self, event: events.Click) -> None:
        if self._stops:
            nearest = min(range(len(self._stops)), key=lambda stop: abs(self._stops[stop] - event.x))
            self.post_message(self.Moved(nearest))


def spread(count: int, width: int, start: int) -> list[int]:
    """The columns of `count` stops, spread over `width` columns from `start` on."""
    if count == 1:
        return [start + width - 1]
    return [start + round(index * (width - 1) / (count - 1)) for index in range(count)]
