"""The screen of `localdpo chat`: a line to ask in, and the conversation of each model that is shown."""

from __future__ import annotations

import threading
from contextlib import closing
from typing import TYPE_CHECKING, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.screen import Screen
from textual.widgets import Input, Static

from localdpo.core.errors import UserError
from localdpo.core.text import counted
from localdpo.dashboard.appbase import app_of
from localdpo.dashboard.keymap import Key, key_name
from localdpo.dashboard.widgets.answertext import clean
from localdpo.dashboard.widgets.basic import TextLine, TextPanel
from localdpo.out.console import Text
from localdpo.records.wording import format_sampling

if TYPE_CHECKING:
    from localdpo.answering.chat import Conversation

# Columns below which the models stand one above the other.
_NARROW: Final = 60
_DRAW_SECONDS: Final = 0.1
# Ctrl only where no plain key is left: the line to ask in takes the letters.
KEYS: Final = (
    Key("chat", "tab", "turn(1)", "model", "the next model, or all side by side"),
    Key("chat", "shift+tab", "turn(-1)", "model", "the model before", False),
    Key("chat", "escape", "stop", "stop", "stop the answer, or clear the line"),
    Key("chat", "ctrl+n", "new", "new", "a new conversation; so does the line /new"),
    Key("chat", "pageup", "scroll(-1)", "scroll", "scroll up"),
    Key("chat", "pagedown", "scroll(1)", "scroll", "scroll down"),
    Key("chat", "ctrl+c", "leave", "leave", "leave"),
)


class Speaking(threading.Thread):
    """Loads the models of a conversation, then answers what is missing whenever it is woken.

    Attributes:
        speaker: name of the model that answers now.
        is_ready: whether the models are loaded.
        failure: what ended the thread.
    """

    def __init__(self, conversation: Conversation) -> None:
        super().__init__(name="speaking", daemon=True)
        self._conversation = conversation
        self._wake, self._stops, self._leaving = threading.Event(), 0, False
        self.speaker: str | None = None
        self.is_ready = False
        self.failure: Exception | None = None

    def go_on(self) -> None:
        """Answer what is missing."""
        self._wake.set()

    def stop(self) -> None:
        """End the answer that is under way."""
        self._wake.clear()
        self._stops += 1

    def leave(self) -> None:
        """End the thread."""
        self._leaving = True
        self.stop()
        self.go_on()

    def run(self) -> None:
        from localdpo.answering.chat import Speakers

        try:
            speakers = Speakers(self._conversation)
            self.is_ready = True
            while not self._leaving:
                self._wake.wait()
                self._wake.clear()
                stops = self._stops
                while self._stops == stops and (name := self._conversation.missing()) is not None:
                    self.speaker = name
                    with closing(speakers.answer(name)) as pieces:
                        for _ in pieces:
                            if self._stops != stops:
                                break
                self.speaker = None
        except Exception as error:  # raised again in the main thread
            self.failure = error


class QuestionLine(Input):
    """The line to ask in. Enter that was pressed before the screen was there comes as Ctrl-J."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+j", "submit", show=False)]


class ChatScreen(Screen[None]):
    """The conversation, which keys and a thread change; drawn ten times a second where it has changed.

    Attributes:
        speaking: the thread.
    """

    CSS_PATH = "../dashboard/styles/chat.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        # In their order after the letters that the line takes; only Ctrl-C would mean something to the line.
        Binding(key.key, key.action, key.help, show=False, priority=key.key == "ctrl+c")
        for key in KEYS
    ]

    def __init__(self, conversation: Conversation) -> None:
        super().__init__()
        self._talk, self.speaking = conversation, Speaking(conversation)
        self._drawn: object = None

    def compose(self) -> ComposeResult:
        yield TextLine(id="chat-state")
        with Horizontal(id="chat-panes"):
            for place in range(len(self._talk.models)):
                yield TextPanel(f"chat-{place}")
        yield QuestionLine(id="question", placeholder="ask something; enter sends it", compact=True)
        app, footer = app_of(self), Text(no_wrap=True)
        for key in KEYS:
            if key.footer:
                footer.append(key_name(key.key, app.abilities.unicode), f"bold {app.palette.chosen}")
                footer.append(f" {key.label}  ", app.palette.muted)
        yield Static(footer, id="chat-keys")

    def on_mount(self) -> None:
        self.speaking.start()
        self.set_interval(_DRAW_SECONDS, self._draw)
        self._draw()

    def on_unmount(self) -> None:
        self.speaking.leave()

    def on_resize(self) -> None:
        self.set_class(self.size.width < _NARROW, "-narrow")

    # --- keys -----------------------------------------------------------------------------------------

    def on_input_submitted(self, event: Input.Submitted) -> None:
        words = event.value.strip()
        if not words:
            return
        try:
            needs_answers = self._talk.take(words)
        except UserError as error:
            self.notify(str(error), severity="error")
            return
        event.input.clear()
        if not needs_answers:
            self.speaking.stop()
        self.speaking.go_on()

    def action_turn(self, by: int) -> None:
        """Show the next model, and all of them after the last; it answers what it has missed."""
        choices = self._talk.choices
        self._talk.choose(choices[(choices.index(self._talk.choice) + by) % len(choices)])
        self.speaking.go_on()

    def action_stop(self) -> None:
        """Stop the answer under way; without one clear the line."""
        if self.speaking.speaker is None:
            self.query_one(Input).clear()
        self.speaking.stop()

    def action_new(self) -> None:
        self.speaking.stop()
        self._talk.new()

    def action_scroll(self, pages: int) -> None:
        for panel in self.query(TextPanel):
            panel.scroll_pages(pages)

    def action_leave(self) -> None:
        self.app.exit()

    # --- drawing --------------------------------------------------------------------------------------

    def _draw(self) -> None:
        if self.speaking.failure is not None:
            app_of(self).fail(self.speaking.failure)
            return
        talk, speaker = self._talk, self.speaking.speaker
        state = (
            speaker,
            self.speaking.is_ready,
            tuple(talk.shown),
            len(talk.questions),
            [(len(every), every[-1:]) for every in talk.answers.values()],
        )
        if state == self._drawn:
            return
        self._drawn = state
        doing = "loading the model" if not self.speaking.is_ready else f"{talk.choice} answers"
        system = "" if talk.system is None else f"  system: {talk.system}"
        line = f"{talk.run.name}  {doing}  {format_sampling(talk.sampling)}{system}"
        self.query_one("#chat-state", TextLine).show(line)
        for place, (name, label) in enumerate(talk.models.items()):
            panel = self.query_one(f"#chat-{place}", TextPanel)
            panel.display = name in talk.shown
            if panel.display:
                at_end = panel.scroll_y >= panel.max_scroll_y
                panel.show(self._transcript(name), label, self._said(name))
                if at_end:
                    panel.call_after_refresh(panel.scroll_end, animate=False)

    def _transcript(self, name: str) -> Text:
        palette, text = app_of(self).palette, Text()
        answers = self._talk.answers[name]
        for turn, question in enumerate(self._talk.questions):
            gap = "\n\n" if turn else ""
            text.append(f"{gap}> {clean(question)}", f"bold {palette.chosen}")
            if turn < len(answers):
                text.append(f"\n{clean(answers[turn].text)}")
        return text

    def _said(self, name: str) -> str:
        """How the model's latest answer stands."""
        answers = self._talk.answers[name]
        if not answers:
            return ""
        words = counted(len(answers[-1].tokens), "token")
        if self.speaking.speaker == name:
            return f"{words} ..."
        return words if answers[-1].finished else f"{words}, cut"
