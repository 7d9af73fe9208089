"""Boxes over the screen: a question with a few answers, a line to type, all keys, all notices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final, TypeVar

from rich.table import Table
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from localdpo.core.text import printable
from localdpo.dashboard.appbase import app_of
from localdpo.dashboard.keymap import SCREEN_TITLES, key_name, keys_of
from localdpo.dashboard.state import LoggedNotice
from localdpo.dashboard.widgets.notices import notice_text
from localdpo.out.console import Text

Result = TypeVar("Result")


class Dialog(ModalScreen[Result]):
    """A box in the middle of the screen; escape closes it without a result.

    A subclass yields its content in `content`. WIDE: for a box of text rather than of a question.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", show=False)]
    WIDE: ClassVar[bool] = False

    def content(self) -> ComposeResult:
        """The widgets in the box."""
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog", classes="-wide" if self.WIDE else None):
            yield from self.content()


@dataclass(frozen=True)
class DialogChoice:
    """One answer: the letter that chooses it, what the dialog then returns, its words."""

    letter: str
    value: str
    words: str


STOP_CHOICES: Final = (
    DialogChoice("s", "save", "save and stop"),
    DialogChoice("w", "discard", "stop without saving: steps since the last checkpoint are lost"),
    DialogChoice("c", "cancel", "cancel: training continues"),
)
DELETE_CHOICES: Final = (
    DialogChoice("d", "delete", "delete the folder and everything in it"),
    DialogChoice("c", "cancel", "cancel"),
)
STOP_EVALUATION_CHOICES: Final = (
    DialogChoice("s", "stop", "stop it; its answers and verdicts so far are kept"),
    DialogChoice("c", "cancel", "cancel: the evaluation continues"),
)


class ChoiceDialog(Dialog[str]):
    """Asks a question; its result is the value of the chosen answer, or None for escape.

    Arrow keys and enter, the answer's letter, or a click.
    """

    def __init__(self, question: str, detail: str, choices: tuple[DialogChoice, ...]) -> None:
        super().__init__()
        self._question, self._detail, self._choices = question, detail, choices

    def content(self) -> ComposeResult:
        yield Static(Text(printable(self._question), style="bold"), id="question")
        yield Static(Text(printable(self._detail)), id="detail")
        options = [
            Option(Text.assemble((f" {choice.letter} ", "bold reverse"), " ", choice.words), id=choice.value)
            for choice in self._choices
        ]
        yield OptionList(*options, id="choices")

    def on_mount(self) -> None:
        self.query_one(OptionList).focus()

    def on_key(self, event: events.Key) -> None:
        for choice in self._choices:
            if event.key == choice.letter:
                event.stop()
                self.dismiss(choice.value)
                return

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)


class LineDialog(Dialog[str]):
    """Asks for a line of text that begins as `text`; its result is the line, or None for escape.

    `placeholder`: shown while the line is empty.
    """

    def __init__(self, question: str, detail: str, text: str, placeholder: str) -> None:
        super().__init__()
        self._question, self._detail, self._text, self._placeholder = question, detail, text, placeholder

    def content(self) -> ComposeResult:
        yield Static(Text(printable(self._question), style="bold"), id="question")
        yield Static(Text(printable(self._detail)), id="detail")
        yield Input(self._text, self._placeholder, select_on_focus=False, id="line")

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)


class HelpScreen(Dialog[None]):
    """All keys, those of the screen it was opened from first."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("question_mark,q", "dismiss", show=False)]
    WIDE = True

    def __init__(self, screen: str) -> None:
        super().__init__()
        self._screen = screen

    def content(self) -> ComposeResult:
        with VerticalScroll(id="keys"):
            for name in [self._screen, "", *(name for name in SCREEN_TITLES if name != self._screen)]:
                if keys_of(name):
                    yield Static(self._table(name), classes="entry")

    def on_mount(self) -> None:
        dialog = self.query_one("#dialog")
        dialog.border_title = "keys"
        dialog.border_subtitle = "esc closes, arrows scroll, : lists all commands"
        self.query_one("#keys").focus()

    def _table(self, name: str) -> Table:
        app = app_of(self)
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=6, no_wrap=True)
        table.add_column()
        here = " (this screen)" if name == self._screen else ""
        title = SCREEN_TITLES[name] + here if name else "Everywhere"
        table.add_row("", Text(title, style=f"bold {app.palette.rejected}"))
        for key in keys_of(name):
            table.add_row(
                Text(key_name(key.key, app.abilities.unicode), style=f"bold {app.palette.chosen}"),
                Text(key.help),
            )
        return table


class NoticesScreen(Dialog[None]):
    """All notices of the run, the newest first, with what each means and what to try."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter,q,A", "dismiss", show=False),
        Binding("up,k", "scroll(-1)", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("pageup", "scroll(-10)", show=False),
        Binding("pagedown,space", "scroll(10)", show=False),
    ]
    WIDE = True

    def __init__(self, notices: Sequence[LoggedNotice]) -> None:
        super().__init__()
        self._notices = sorted(notices, key=lambda notice: notice.time, reverse=True)

    def content(self) -> ComposeResult:
        with VerticalScroll(id="notices"):
            if not self._notices:
                yield Static("No notices so far.", classes="entry")
            for notice in self._notices:
                yield Static(notice_text(notice, app_of(self)), classes="entry")

    def on_mount(self) -> None:
        dialog = self.query_one("#dialog")
        dialog.border_title = f"notices ({len(self._notices)})"
        dialog.border_subtitle = "esc closes"

    def action_scroll(self, rows: int) -> None:
        """Scroll the box by rows."""
        self.query_one(VerticalScroll).scroll_relative(y=rows, animate=False)
