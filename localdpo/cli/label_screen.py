"""The screen of `localdpo prefs label`: two answers without names, one key a pair, every key saved."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widgets import Input, Static

from localdpo.core.text import printable
from localdpo.dashboard.appbase import app_of
from localdpo.dashboard.keymap import Key, key_name
from localdpo.dashboard.screens.dialogs import HelpScreen
from localdpo.dashboard.widgets.answertext import clean, prompt_view
from localdpo.dashboard.widgets.basic import TextPanel
from localdpo.out.console import Text

if TYPE_CHECKING:
    from localdpo.prefs.label import Choice, Labelling

# Columns below which the answers stand one above the other.
_NARROW: Final = 80
_ALL_DONE: Final = "All pairs are labelled. u takes the last answer back, q leaves."
KEYS: Final = (
    Key("label", "1", "choose('1')", "first", "the first answer is better"),
    Key("label", "2", "choose('2')", "second", "the second answer is better"),
    Key("label", "t", "choose('tie')", "tie", "they are equally good"),
    Key("label", "b", "choose('bad')", "both bad", "neither is any good"),
    Key("label", "s", "choose('skip')", "skip", "no answer to this one"),
    Key("label", "u", "undo", "undo", "take the last answer back"),
    Key("label", "f", "flag", "flag", "mark the pair, or take the mark away"),
    Key("label", "n", "note", "note", "write a note on the pair; enter saves it, escape does not"),
    Key("label", "question_mark", "help", "help", "all keys"),
    Key("label", "q", "leave", "leave", "leave; everything is saved, the same command resumes"),
)


class LabelScreen(Screen[None]):
    """One pair at a time: the `current` one of `state`, which keys change."""

    CSS_PATH = "../dashboard/styles/label.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(Binding(key.key, key.action, key.help, show=False) for key in KEYS),
        Binding("escape", "drop_note", show=False),
    ]
    # The line for a note must not take the keys before it is asked for.
    AUTO_FOCUS = ""

    def __init__(self, state: Labelling) -> None:
        super().__init__()
        self.state = state

    def compose(self) -> ComposeResult:
        yield Static(id="progress")
        yield TextPanel("label-prompt")
        with Horizontal(id="label-panes"):
            yield TextPanel("first")
            yield TextPanel("second")
        yield Input(id="label-note", placeholder="note on this pair; enter saves it, escape does not")
        yield Static(Text("  ".join(f"{key_name(key.key)} {key.label}" for key in KEYS)), id="label-keys")

    def on_mount(self) -> None:
        self._draw()

    def on_resize(self) -> None:
        self.set_class(self.size.width < _NARROW, "-narrow")

    # --- keys -----------------------------------------------------------------------------------------

    def action_choose(self, choice: Choice) -> None:
        """Answer for the pair that is shown."""
        if self.state.current is not None:
            self._change(lambda: self.state.answer(choice))

    def action_undo(self) -> None:
        self._change(self.state.undo)

    def action_flag(self) -> None:
        if self.state.current is not None:
            self._change(self.state.flag)

    def action_note(self) -> None:
        """Open the line for a note, with the note that is there."""
        now = self.state.current
        if now is not None:
            line = self.query_one(Input)
            line.value = self.state.notes.get(now.item.row, "")
            line.display = True
            line.focus()

    def action_drop_note(self) -> None:
        self.query_one(Input).display = False
        self.set_focus(None)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.action_drop_note()
        self._change(lambda: self.state.note(event.value.strip()))

    def action_help(self) -> None:
        self.app.push_screen(HelpScreen([("Label", KEYS)]))

    def action_leave(self) -> None:
        self.app.exit()

    def _change(self, change: Callable[[], object]) -> None:
        change()
        self._draw()

    # --- drawing --------------------------------------------------------------------------------------

    def _draw(self) -> None:
        state, now = self.state, self.state.current
        progress = Text(f"{len(state.labels):,}/{len(state.places):,} answered", no_wrap=True)
        if now is not None:
            progress.append("  flagged" if now.item.row in state.flags else "", style="bold")
            note = state.notes.get(now.item.row)
            progress.append(f"  note: {printable(note)}" if note else "")
        self.query_one("#progress", Static).update(progress)
        self.query_one("#label-prompt", TextPanel).show(
            prompt_view(now.item.prompt if now is not None else _ALL_DONE, app_of(self).palette)
        )
        self.query_one("#label-panes").display = now is not None
        for index, name in enumerate(("first", "second")):
            panel = self.query_one(f"#{name}", TextPanel)
            panel.show(Text("" if now is None else clean(now.answers[index])), str(index + 1))
            panel.scroll_home(animate=False)
