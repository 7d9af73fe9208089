"""The compare screen: its keys, at every size, while answers come in."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from made_answers import header, record, write_answers
from made_runs import drive, make_app, make_run, press, resize, settle, shown
from textual.pilot import Pilot

from localdpo.dashboard.appbase import frame_text
from localdpo.dashboard.widgets.basic import TextPanel
from localdpo.records.answers import AnswersWriter, answers_path
from localdpo.records.rundir import RunDir
from localdpo.records.votes import Votes

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path, "made")


def frame_after(run: RunDir, *keys: str, size: tuple[int, int] = (120, 36), **environment: str) -> str:
    """The frame after these keys."""
    app = make_app(run, "compare", environment=environment)
    frames: list[str] = []

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, *keys)
        frames.append(frame_text(app))

    drive(app, act, size)
    return frames[0]


def test_three_answers_stand_beside_each_other(run: RunDir) -> None:
    write_answers(run.path)
    frame = frame_after(run)
    assert "12/12 answers" in frame
    top = next(line for line in frame.splitlines() if "base, 2 tokens" in line)
    assert top.index("base, 2") < top.index("SFT, 7") < top.index("DPO, 8")
    assert "Why is the sky blue?" in frame
    assert "b−0.50 S−1.50 D−2.50" in frame  # noqa: RUF001
    assert "DPO beside SFT: 4 words new, 3 gone" in frame
    assert "judge lost (no verdicts)" in frame


def test_down_and_n_go_through_the_prompts(run: RunDir) -> None:
    write_answers(run.path)
    app = make_app(run, "compare")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "down")
        assert "prompt 2" in frame_text(app)
        assert "[bold]grass[/bold]" in frame_text(app), "prompts are no markup"
        await press(pilot, "up", "n")
        assert "prompt 3" in frame_text(app)
        await press(pilot, "n", "n")
        assert "prompt 1 " in frame_text(app)

    drive(app, act)


def test_f_filters_and_the_prompt_follows(run: RunDir) -> None:
    write_answers(run.path)
    frame = frame_after(run, "f", "f", "f")
    assert "[shorter]" in frame
    assert "1 of 4 prompts" in frame
    assert "prompt 3" in frame
    assert "Why is the sky" not in frame


def test_a_filter_that_keeps_nothing_says_so(run: RunDir) -> None:
    write_answers(run.path, prompts=2)
    app = make_app(run, "compare")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "f", "f", "f")
        assert "no prompt passes this filter" in frame_text(app)
        await press(pilot, "f")
        assert "prompt 1 " in frame_text(app)

    drive(app, act)


def test_w_compares_with_another(run: RunDir) -> None:
    write_answers(run.path)
    frame = frame_after(run, "w")
    assert "DPO beside base" in frame
    assert "DPO≠base" in frame


def test_d_takes_the_marks_off(run: RunDir) -> None:
    write_answers(run.path)
    app = make_app(run, "compare", environment={"LOCALDPO_ASCII": "1"})

    async def act(pilot: Pilot[None]) -> None:
        assert "{+looks+}" in frame_text(app)
        await press(pilot, "d")
        assert "{+" not in frame_text(app)

    drive(app, act)


def test_enter_shows_one_answer_over_the_whole_width(run: RunDir) -> None:
    write_answers(run.path)
    app = make_app(run, "compare")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "right", "right", "enter")
        assert "[DPO]" in frame_text(app)
        assert "DPO, 8 tokens" in frame_text(app)
        assert "SFT, 7 tokens" not in frame_text(app)
        await press(pilot, "left")
        assert "SFT, 7 tokens" in frame_text(app)

    drive(app, act)


def test_votes_are_blind_kept_and_taken_back(run: RunDir) -> None:
    write_answers(run.path)
    app = make_app(run, "compare")
    frames = []

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "v")
        frame = frame_text(app)
        assert "blind, 0 votes" in frame
        assert "answer 1" in frame
        assert "It is." not in frame, "the base is not voted on"
        for word in ("DPO,", "SFT,", "was", "beside"):
            assert word not in frame
        await press(pilot, "2")
        frames.append(frame_text(app))

    drive(app, act)
    frame = frames[0]
    (vote,) = Votes(run.path / "votes.jsonl").all()
    assert (vote.prompt, vote.choice, vote.seed, {vote.first, vote.second}) == (
        "id0",
        "second",
        3,
        {"sft", "dpo"},
    )
    label = {"sft": "SFT", "dpo": "DPO"}
    assert f"1 was {label[vote.first]}," in frame
    assert f"2 was {label[vote.second]}, your vote" in frame
    assert "blind, 1 vote " in frame
    frame_after(run, "v", "n", "1", "n", "t")
    choices = [(each.prompt, each.choice) for each in Votes(run.path / "votes.jsonl").all()]
    assert choices == [("id0", "second"), ("id2", "first"), ("id3", "tie")]
    assert "answer 1" in frame_after(run, "v", "u")
    assert len(Votes(run.path / "votes.jsonl").all()) == 2


def test_there_is_no_vote_on_equal_answers_nor_with_names(run: RunDir) -> None:
    write_answers(run.path)
    frame = frame_after(run, "t", "v", "down", "1")
    assert "nothing to vote on" in frame
    assert Votes(run.path / "votes.jsonl").all() == []


def test_panes_are_entered_by_letters_and_1_and_2_are_screens_while_names_are_shown(run: RunDir) -> None:
    write_answers(run.path)
    app = make_app(run, "compare")

    async def act(pilot: Pilot[None]) -> None:
        before = app.focused
        await press(pilot, "j", "d")
        assert isinstance(app.focused, TextPanel)
        await press(pilot, "down", "escape")
        assert app.focused is before
        assert not any(panel.can_focus for panel in app.screen.query(TextPanel))
        await press(pilot, "2")
        assert app.screen_name == "samples"
        await press(pilot, "4", "v", "2")
        assert app.screen_name == "compare"

    drive(app, act)
    assert len(Votes(run.path / "votes.jsonl").all()) == 1


def test_answers_appear_as_they_are_written(run: RunDir) -> None:
    app = make_app(run, "compare")
    path = answers_path(run.path, "k1")
    path.parent.mkdir()
    path.write_text("")

    async def act(pilot: Pilot[None]) -> None:
        assert "no answers yet" in frame_text(app)
        with AnswersWriter(path, header()) as writer:
            for name, expected in (("base", "1/12"), ("sft", "2/12"), ("dpo", "3/12")):
                writer.answers(record(0, name))
                await shown(pilot, f"{expected} answers")
                assert "incomplete: g resumes" in frame_text(app)
        await shown(pilot, "looks")
        await press(pilot, "down")
        assert "not generated yet" in frame_text(app)

    drive(app, act)


def test_without_answers_the_key_that_makes_them_is_named(run: RunDir) -> None:
    assert "no answers yet: g generates them" in frame_after(run)
    assert "no answers yet" in frame_after(
        run, "n", "f", "w", "v", "t", "u", "o", "d", "left", "enter", "pagedown"
    )


@pytest.mark.parametrize(
    ("size", "environment"),
    [
        ((40, 12), {}),
        ((80, 24), {"NO_COLOR": "1"}),
        ((100, 20), {}),
        ((120, 36), {"NO_COLOR": "1", "LOCALDPO_ASCII": "1"}),
        ((200, 60), {}),
    ],
)
@pytest.mark.every(3)
def test_every_size_shows_an_answer(size: tuple[int, int], environment: dict[str, str], run: RunDir) -> None:
    write_answers(run.path, ("base", "sft", "dpo", "run:b", "run:c"))
    frame = frame_after(run, "right", "right", size=size, **environment)
    assert "20/20 answers" in frame
    assert "The sky" in frame
    assert "DPO" in frame
    lines = frame.splitlines()
    assert len(lines) <= size[1]
    assert all(len(line) <= size[0] for line in lines)
    assert "LOCALDPO_ASCII" not in environment or frame.isascii()


@pytest.mark.long
def test_no_size_breaks_it(run: RunDir) -> None:
    write_answers(run.path)
    app = make_app(run, "compare")
    chance = random.Random(5)

    async def act(pilot: Pilot[None]) -> None:
        for _ in range(8):
            await resize(pilot, chance.randint(20, 200), chance.randint(6, 60))
            await press(pilot, chance.choice(["n", "f", "v", "enter", "right", "d", "down", "pagedown"]))

    drive(app, act, paint=True)


def test_another_run_has_other_answers(run: RunDir, tmp_path: Path) -> None:
    write_answers(run.path)
    other = make_run(tmp_path, "other")
    app = make_app(run, "compare")

    async def act(pilot: Pilot[Any]) -> None:
        assert "12/12 answers" in frame_text(app)
        app.attach(other)
        await settle(pilot)
        await press(pilot, "4")
        assert "no answers yet" in frame_text(app)

    drive(app, act)
