"""The chat screen: keys, what is shown, stopping, the end."""

from __future__ import annotations

import threading
from collections.abc import Generator
from pathlib import Path

import pytest
from answering_runs import run_folder
from made_runs import drive, press, until
from textual.pilot import Pilot
from textual.widgets import Input

from localdpo.answering import chat
from localdpo.answering.chat import Conversation
from localdpo.cli.chat_screen import ChatScreen
from localdpo.core.errors import UserError
from localdpo.dashboard.appbase import ScreenApp, frame_text
from localdpo.model.generate import SampledAnswer
from localdpo.records.answers import Sampling

pytestmark = pytest.mark.slow

TERMINAL = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "en_US.UTF-8"}


class Scripted:
    """Speakers without a model: each says its name and the question, and waits before the last word."""

    may_end = threading.Event()

    def __init__(self, talk: Conversation) -> None:
        self.talk = talk

    def answer(self, name: str) -> Generator[SampledAnswer]:
        answers = self.talk.answers[name]
        place, question = len(answers), self.talk.questions[len(answers)]
        for text, end in ((f"{name} says", None), (f"{name} says {question}!", 0)):
            if end is not None:
                while not self.may_end.wait(0.01):
                    yield answers[place]
            answers[place:] = [SampledAnswer(text, (1, 2), end)]
            yield answers[place]


@pytest.fixture
def talk(
    tmp_path: Path, tiny_model: Path, sft_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> Conversation:
    monkeypatch.setattr(chat, "Speakers", Scripted)
    Scripted.may_end.set()
    run = run_folder(tmp_path / "runs" / "a", tiny_model, sft_adapter)
    return Conversation(run, system="Be short.", sampling=Sampling(), note=print)


def test_a_question_is_answered_by_the_models_shown(talk: Conversation) -> None:
    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, *"hi q", "enter")
        await until(pilot, lambda: "dpo says hi q!" in frame_text(pilot.app))
        frame = frame_text(pilot.app)
        assert "╭─ DPO" in frame
        assert "base" not in frame
        assert "system: Be short." in frame
        assert "> hi q" in frame
        assert "2 tokens" in frame
        await press(pilot, "tab")
        await until(pilot, lambda: talk.missing() is None)
        assert talk.choice == "all"
        assert [len(every) for every in talk.answers.values()] == [1, 1, 1]
        await until(pilot, lambda: "base says hi q!" in frame_text(pilot.app))
        await press(pilot, "shift+tab", "ctrl+n", *"new", "ctrl+j")
        await until(pilot, lambda: "dpo says new!" in frame_text(pilot.app))
        assert talk.questions == ["new"]
        assert "hi q" not in frame_text(pilot.app)

    drive(ScreenApp(ChatScreen(talk), TERMINAL), act, (80, 24))


def test_escape_stops_the_answer_and_keeps_it(talk: Conversation) -> None:
    Scripted.may_end.clear()

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, *"/all", "enter", *"q", "enter")
        await until(pilot, lambda: "base says" in frame_text(pilot.app))
        assert "2 tokens ..." in frame_text(pilot.app)
        await press(pilot, "escape")
        await until(pilot, lambda: "2 tokens, cut" in frame_text(pilot.app))
        assert [len(every) for every in talk.answers.values()] == [1, 0, 0]
        Scripted.may_end.set()
        await press(pilot, *"/dpo", "enter")
        await until(pilot, lambda: "dpo says q!" in frame_text(pilot.app))
        await press(pilot, "ctrl+c")

    screen = ChatScreen(talk)
    drive(app := ScreenApp(screen, TERMINAL), act, (80, 24))
    screen.speaking.join(10.0)
    assert not screen.speaking.is_alive()
    assert app.failure is None


def test_a_mistyped_command_stays_in_the_line(talk: Conversation) -> None:
    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, *"/bse", "enter")
        await until(pilot, lambda: "/bse: no such command" in " ".join(frame_text(pilot.app).split()))
        assert pilot.app.screen.query_one(Input).value == "/bse"
        assert talk.questions == []

    drive(ScreenApp(ChatScreen(talk), TERMINAL), act, (80, 24))


def test_a_model_that_cannot_be_loaded_ends_the_screen(
    talk: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(talk: Conversation) -> None:
        raise UserError("no such model")

    monkeypatch.setattr(chat, "Speakers", refuse)

    async def act(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: not pilot.app.is_running)

    app = ScreenApp(ChatScreen(talk), TERMINAL)
    drive(app, act, (80, 24))
    assert isinstance(app.failure, UserError)
