"""One answer in a frame: who gave it above, log-probabilities below."""

from __future__ import annotations

from textual.containers import VerticalScroll
from textual.widgets import Static

from localdpo.out.console import Text


class AnswerPane(VerticalScroll, can_focus=False):
    """A frame that scrolls. It can be drawn in before it is mounted."""

    def __init__(self, id: str) -> None:
        self._body = Static()
        super().__init__(self._body, id=id, classes="panel answer")

    def show(self, title: Text, body: Text, subtitle: Text) -> None:
        """Draw the lines of the frame and what is in it."""
        # As texts: a str would be taken for markup.
        self.border_title, self.border_subtitle = title, subtitle
        self._body.update(body)
