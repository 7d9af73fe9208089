"""The screen for labelling: every key, autosave, the end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from made_runs import drive, press
from textual.pilot import Pilot
from textual.widgets import Input

from localdpo.cli.label_screen import LabelScreen
from localdpo.core.errors import UserError
from localdpo.dashboard.appbase import ScreenApp, frame_text
from localdpo.prefs.label import Labelling, open_labelling
from localdpo.records.log import unseal

pytestmark = pytest.mark.slow

PAIRS = 4
TERMINAL = {"TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "en_US.UTF-8"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"question {i} [bold]?", "chosen": f"good {i}", "rejected": f"bad {i}"}
        for i in range(PAIRS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def opened(data: Path) -> Labelling:
    return open_labelling(str(data), data.with_suffix(".labels"), again=0.0)


def saved(data: Path) -> list[dict[str, Any]]:
    """The records of the journal, without its header."""
    lines = data.with_suffix(".labels").read_bytes().splitlines()
    return [json.loads(unseal(line)) for line in lines][1:]


def pressed(state: Labelling, *keys: str, size: tuple[int, int] = (100, 30), **environment: str) -> str:
    """The frame after these keys."""
    frames: list[str] = []

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, *keys)
        frames.append(frame_text(pilot.app))

    drive(ScreenApp(LabelScreen(state), TERMINAL | environment), act, size)
    return frames[0]


def test_the_keys_are_explained(data: Path) -> None:
    frame = pressed(opened(data), "question_mark")
    assert "the first answer is better" in frame
    assert "question 0 [bold]?" in pressed(opened(data), "question_mark", "question_mark")


def test_a_pair_is_shown_blind(data: Path) -> None:
    state = opened(data)
    frame = pressed(state)
    now = state.current
    assert now is not None
    assert f"0/{PAIRS} answered" in frame
    assert now.item.prompt in frame, "prompts are no markup"
    line = next(line for line in frame.splitlines() if now.answers[0] in line)
    assert line.index(now.answers[0]) < line.index(now.answers[1])
    assert "chosen" not in frame
    assert "rejected" not in frame


@pytest.mark.parametrize(
    ("key", "choice"), [("1", "1"), ("2", "2"), ("t", "tie"), ("b", "bad"), ("s", "skip")]
)
def test_an_answer_is_on_the_disk_at_once_and_the_next_pair_comes(data: Path, key: str, choice: str) -> None:
    state = opened(data)
    first = state.shown(0)
    frame = pressed(state, key)
    (record,) = saved(data)
    assert (record["row"], record["choice"], record["swapped"]) == (first.item.row, choice, first.swapped)
    assert f"1/{PAIRS} answered" in frame
    assert state.shown(1).item.prompt in frame
    assert opened(data).labels == state.labels


def test_u_takes_the_last_answer_back(data: Path) -> None:
    state = opened(data)
    frame = pressed(state, "1", "2", "u")
    assert f"1/{PAIRS} answered" in frame
    assert state.shown(1).item.prompt in frame
    assert saved(data)[-1] == {"undo": 1}
    assert f"0/{PAIRS} answered" in pressed(opened(data), "u", "u")


def test_f_flags_and_takes_the_flag_away(data: Path) -> None:
    state = opened(data)
    row = state.shown(0).item.row
    assert "flagged" in pressed(state, "f")
    assert saved(data) == [{"flag": row, "on": True}]
    assert "flagged" not in pressed(state, "f")
    assert state.flags == set()


def test_n_writes_a_note(data: Path) -> None:
    state = opened(data)
    row = state.shown(0).item.row
    frame = pressed(state, "n", *"1 b", "enter")
    assert "note: 1 b" in frame
    assert state.notes == {row: "1 b"}
    assert state.labels == {}, "what is typed is no answer"
    assert saved(data) == [{"note": row, "text": "1 b"}]
    assert "note: 1 b" in pressed(state, "n", "x", "escape")
    assert "note:" not in pressed(state, "n", *["backspace"] * 3, "enter")


def test_escape_gives_the_keys_back(data: Path) -> None:
    state = opened(data)
    assert f"1/{PAIRS} answered" in pressed(state, "n", "x", "escape", "1")
    assert state.notes == {}


def test_at_the_end_it_says_so_and_only_undo_works(data: Path) -> None:
    state = opened(data)
    frame = pressed(state, *"12tb", *"1tfn")
    assert f"{PAIRS}/{PAIRS} answered" in frame
    assert "All pairs are labelled" in frame
    assert len(saved(data)) == PAIRS
    assert f"{PAIRS - 1}/{PAIRS} answered" in pressed(state, "u")


def test_q_leaves(data: Path) -> None:
    app = ScreenApp(LabelScreen(opened(data)), TERMINAL)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "q")
        assert not app.is_running or app._exit

    drive(app, act)
    assert app.failure is None


def test_a_full_disk_ends_it_with_its_line(data: Path) -> None:
    state = opened(data)

    def refuse(record: object) -> None:
        raise UserError("no space left on the disk")

    state.save = refuse
    app = ScreenApp(LabelScreen(state), TERMINAL)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "1")

    drive(app, act)
    assert str(app.failure) == "no space left on the disk"
    assert state.labels == {}


@pytest.mark.parametrize("size", [(40, 12), (60, 20), (200, 50)])
@pytest.mark.every(3)
def test_every_size_shows_both_answers(data: Path, size: tuple[int, int]) -> None:
    state = opened(data)
    frame = pressed(state, size=size)
    now = state.current
    assert now is not None
    for answer in now.answers:
        assert answer in frame


def test_without_unicode_everything_is_ascii(data: Path) -> None:
    assert pressed(opened(data), "1", LOCALDPO_ASCII="1").isascii()


def test_the_line_for_a_note_is_hidden_until_it_is_wanted(data: Path) -> None:
    app = ScreenApp(LabelScreen(opened(data)), TERMINAL)

    async def act(pilot: Pilot[None]) -> None:
        line = app.screen.query_one(Input)
        assert not line.display
        await press(pilot, "n")
        assert line.display
        assert line.has_focus

    drive(app, act)
