"""Widgets that several screens share: a line, a table of rows to choose from, a framed text that scrolls."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.console import RenderableType
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import DataTable, Static

from localdpo.dashboard.appbase import app_of
from localdpo.dashboard.picture import fitted
from localdpo.out.console import Text


class TextLine(Widget):
    """One line of text. Unlike Textual's Static, a change does not lay out the whole screen again."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._text = ""

    def show(self, text: str) -> None:
        """Show `text`."""
        if text != self._text:
            self._text = text
            self.refresh()

    def render(self) -> Text:
        return Text(fitted(self._text, self.size.width, app_of(self).abilities.ellipsis), no_wrap=True)


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
