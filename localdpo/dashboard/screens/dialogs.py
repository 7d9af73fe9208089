"""Questions in a box over the screen: one to choose from a few answers, one to type a line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from localdpo.core.text import printable
from localdpo.out.console import Text


@dataclass(frozen=True)
class Choice:
    """One answer: the letter that gives it, what the question then returns, what it says."""

    letter: str
    value: str
    words: str


STOP_CHOICES: Final = (
    Choice("s", "save", "save and stop"),
    Choice("w", "discard", "stop without saving: steps since the last checkpoint are lost"),
    Choice("c", "cancel", "cancel: training goes on"),
)
DELETE_CHOICES: Final = (
    Choice("d", "delete", "delete the folder and everything in it"),
    Choice("c", "cancel", "cancel"),
)
STOP_EVALUATION_CHOICES: Final = (
    Choice("s", "stop", "stop it; what was answered and judged is kept"),
    Choice("c", "cancel", "cancel: it goes on"),
)


class Choose(ModalScreen[str]):
    """Asks a question; gives the value of the chosen answer, or None for escape.

    Arrow keys and enter, the answer's letter, or a click.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", show=False)]

    def __init__(self, question: str, detail: str, choices: tuple[Choice, ...]) -> None:
        super().__init__()
        self._question, self._detail, self._choices = question, detail, choices

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(Text(printable(self._question), style="bold"), id="question")
            yield Static(Text(printable(self._detail)), id="detail")
            yield OptionList(
                *(Option(_worded(choice), id=choice.value) for choice in self._choices), id="choices"
            )

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


class TypeLine(ModalScreen[str]):
    """Asks for a line of text that begins as `text`; gives it, or None for escape.

    `empty`: what stands in the line while it is empty.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", show=False)]

    def __init__(self, question: str, detail: str, text: str, empty: str) -> None:
        super().__init__()
        self._question, self._detail, self._text, self._empty = question, detail, text, empty

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(Text(printable(self._question), style="bold"), id="question")
            yield Static(Text(printable(self._detail)), id="detail")
            yield Input(self._text, self._empty, select_on_focus=False, id="line")

    def on_mount(self) -> None:
        self.query_one(Input).focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)


def _worded(choice: Choice) -> Text:
    return Text.assemble((f" {choice.letter} ", "bold reverse"), " ", choice.words)
