"""Boxes over the screen: a question with a few answers, a line to type, all keys, all notices."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Final

from rich.console import RenderableType
from rich.table import Table
from textual import events
from textual.app import ComposeResult
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.command import CommandPalette
from textual.containers import Vertical, VerticalScroll
from textual.geometry import Size
from textual.screen import ModalScreen, ScreenResultType
from textual.widget import Widget
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from localdpo.core.text import printable
from localdpo.dashboard.appbase import app_of
from localdpo.dashboard.keymap import Key, key_name
from localdpo.dashboard.widgets.notices import notice_text
from localdpo.out.console import Text
from localdpo.records.events import Notice

# An answer: the letter that chooses it, what the dialog then returns, its words.
DialogChoice = tuple[str, str, str]

STOP_DETAIL: Final = "It can be resumed later. To leave and let it train: c, then q."
STOP_CHOICES: Final = (
    ("s", "save", "save and stop"),
    ("w", "discard", "stop without saving: steps since the last checkpoint are lost"),
    ("c", "cancel", "cancel: training continues"),
)
DELETE_CHOICES: Final = (
    ("d", "delete", "delete the folder and everything in it"),
    ("c", "cancel", "cancel"),
)
STOP_EVALUATION_CHOICES: Final = (
    ("s", "stop", "stop it; its answers and verdicts so far are kept"),
    ("c", "cancel", "cancel: the evaluation continues"),
)


class Box(ModalScreen[ScreenResultType]):
    """A box that is left once: keys typed faster than it goes mean nothing to it any more.

    What was notified before would hide it on a small terminal, and goes.
    """

    def on_mount(self) -> None:
        self.app.clear_notifications()

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        return super().dismiss(result) if self.is_current else AwaitComplete()


class QuestionDialog(Box[str]):
    """A question in the middle of the screen; its result is the answer, or None for escape.

    A subclass makes the widget that takes the answer in `entry`.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", show=False)]

    def __init__(self, question: str, detail: str) -> None:
        super().__init__()
        self._question, self._detail = question, detail

    def entry(self) -> Widget:
        """What takes the answer."""
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(Text(printable(self._question), style="bold"), id="question")
            yield Static(Text(printable(self._detail)), id="detail")
            yield self.entry()


class ChoiceDialog(QuestionDialog):
    """Asks for one of some answers; its result is the answer's value.

    Arrow keys and enter, the answer's letter, or a click.
    """

    def __init__(self, question: str, detail: str, choices: tuple[DialogChoice, ...]) -> None:
        super().__init__(question, detail)
        self._choices = choices

    def entry(self) -> OptionList:
        options = [
            Option(Text.assemble((f" {letter} ", "bold reverse"), " ", words), id=value)
            for letter, value, words in self._choices
        ]
        return OptionList(*options, id="choices")

    def on_key(self, event: events.Key) -> None:
        for letter, value, _ in self._choices:
            if event.key == letter:
                event.stop()
                self.dismiss(value)
                return

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(event.option_id)


class LineDialog(QuestionDialog):
    """Asks for a line of text that begins as `text`; `placeholder` is shown while it is empty."""

    def __init__(self, question: str, detail: str, text: str, placeholder: str) -> None:
        super().__init__(question, detail)
        self._text, self._placeholder = text, placeholder

    def entry(self) -> Input:
        return Input(self._text, self._placeholder, select_on_focus=False, id="line")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)


class TextDialog(Box[None]):
    """A box of entries, one below the other, that scrolls."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss", show=False),
        Binding("k", "focused.scroll_up", show=False),
        Binding("j", "focused.scroll_down", show=False),
        Binding("space", "focused.page_down", show=False),
    ]

    # In the upper and in the lower line of the frame.
    titles: tuple[str, str]

    def entries(self) -> Iterator[RenderableType]:
        """What the box shows."""
        raise NotImplementedError

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog", classes="-wide") as dialog, VerticalScroll(id="entries"):
            for entry in self.entries():
                yield Static(entry, classes="entry")
        dialog.border_title, dialog.border_subtitle = self.titles


class HelpScreen(TextDialog):
    """All keys, a table for each of `groups` (title, keys)."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("question_mark", "dismiss", show=False)]

    def __init__(self, groups: Sequence[tuple[str, Sequence[Key]]]) -> None:
        super().__init__()
        self._groups = groups
        self.titles = "keys", "esc closes, arrows scroll"

    def entries(self) -> Iterator[Table]:
        palette, unicode = app_of(self).palette, app_of(self).abilities.unicode
        for title, keys in self._groups:
            table = Table.grid(padding=(0, 2))
            table.add_column(min_width=6, no_wrap=True)
            table.add_column()
            table.add_row("", Text(title, f"bold {palette.rejected}"))
            for key in keys:
                table.add_row(Text(key_name(key.key, unicode), f"bold {palette.chosen}"), Text(key.help))
            yield table


class DashboardHelp(HelpScreen):
    """All keys of the dashboard, which has its commands by name, too."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("colon", "commands", show=False)]

    def __init__(self, groups: Sequence[tuple[str, Sequence[Key]]]) -> None:
        super().__init__(groups)
        self.titles = self.titles[0], f"{self.titles[1]}, : lists all commands"

    async def action_commands(self) -> None:
        """The command palette in place of this."""
        await self.dismiss()
        await self.app.run_action("command_palette")


_LETTERS: Final = "asdfghjklqwertyuiopzxcvbnm"


class JumpScreen(Box[Widget]):
    """A letter on each of `targets`, parts of the screen below; its result is the one whose key came."""

    def __init__(self, targets: Sequence[Widget]) -> None:
        super().__init__()
        self._targets = dict(zip(_LETTERS, targets, strict=False))
        self._arranged: Size | None = None

    def compose(self) -> ComposeResult:
        for letter, target in self._targets.items():
            label = Static(f" {letter} ", classes="jump")
            label.styles.offset = target.region.offset
            yield label

    def on_resize(self) -> None:
        """Leave where the parts have moved."""
        if self._arranged not in (None, self.size):
            self.dismiss()
        self._arranged = self.size

    def on_key(self, event: events.Key) -> None:
        event.stop()
        self.dismiss(self._targets.get(event.key))


class CommandsScreen(CommandPalette):
    """All commands by name. Textual's own (8.2) crashes where it is left just before it says "no matches"."""

    def dismiss(self, result: None = None) -> AwaitComplete:
        self._stop_no_matches_countdown()
        return super().dismiss(result) if self.is_current else AwaitComplete()


class NoticesScreen(TextDialog):
    """All notices of the run, the newest first, with what each means and what to try."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("enter,A", "dismiss", show=False)]

    def __init__(self, notices: Sequence[Notice]) -> None:
        super().__init__()
        self._notices = sorted(notices, key=lambda notice: notice.time, reverse=True)
        self.titles = f"notices ({len(notices)})", "esc closes"

    def entries(self) -> Iterator[Text]:
        for notice in self._notices:
            yield notice_text(notice, app_of(self))
        if not self._notices:
            yield Text("No notices so far.")
