"""A line of text that changes often."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from textual.widget import Widget

from localdpo.dashboard.picture import fitted
from localdpo.out.console import Text

if TYPE_CHECKING:
    from localdpo.dashboard.app import DashboardApp


class Line(Widget):
    """One text. Unlike Textual's Static it does not have the whole screen laid out anew for each change."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._text = ""

    def say(self, text: str) -> None:
        """Show `text`."""
        if text != self._text:
            self._text = text
            self.refresh()

    def render(self) -> Text:
        ellipsis = "…" if cast("DashboardApp", self.app).abilities.unicode else "~"
        return Text(fitted(self._text, self.size.width, ellipsis), no_wrap=True)
