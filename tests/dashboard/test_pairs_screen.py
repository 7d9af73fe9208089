from __future__ import annotations

import json
from pathlib import Path

import pytest
from made_runs import drive, make_app, make_run, press
from textual.pilot import Pilot

from localdpo.dashboard.appbase import frame_text
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return make_run(tmp_path, "dpo")


def test_the_list_and_the_selected_pair(run: RunDir):
    app = make_app(run, "pairs")

    async def act(pilot: Pilot[None]) -> None:
        text = frame_text(app)
        assert "-0.240▼" in text
        assert "row 7: prompt" in text
        assert "Triage report 7." in text
        assert "reward -0.120, 4 tokens" in text
        await press(pilot, "down")
        assert "row 3: prompt" in frame_text(app)
        await press(pilot, "up")
        assert "row 7: prompt" in frame_text(app)

    drive(app, act)


def test_enter_gives_the_pair_the_screen_and_takes_it_back(run: RunDir):
    app = make_app(run, "pairs")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "down", "enter")
        assert "margin    chosen" not in frame_text(app)
        assert "row 3: prompt" in frame_text(app)
        await press(pilot, "enter")
        assert "margin    chosen" in frame_text(app)
        await press(pilot, "enter", "up")
        assert "row 7: prompt" in frame_text(app)
        await press(pilot, "escape")
        assert "margin    chosen" in frame_text(app)
        await press(pilot, "down", "enter", "down", "down", "down")
        assert "row 12: prompt" in frame_text(app)

    drive(app, act, size=(120, 24))


def test_rewards_as_numbers(run: RunDir):
    app = make_app(run, "pairs")

    async def act(pilot: Pilot[None]) -> None:
        assert "Next: wait.[-0.200]" not in frame_text(app)
        await press(pilot, "n")
        assert "Next: wait.[-0.200]" in frame_text(app)
        await press(pilot, "n")
        assert "[-0.200]" not in frame_text(app)

    drive(app, act)


def test_the_slider_keeps_the_selected_pair(run: RunDir):
    app = make_app(run, "pairs")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "down", "left", "left")
        text = frame_text(app)
        assert "step 20" in text
        assert "-0.120▼" in text
        assert "row 3: prompt" in text
        await press(pilot, "home")
        assert "step 0" in frame_text(app)
        await press(pilot, "right", "end")
        assert "5 of 5, newest" in frame_text(app)

    drive(app, act)


def test_a_file_that_is_gone_is_named_and_the_others_stay(run: RunDir):
    (run.path / "pairs" / "step-000040.json").unlink()
    app = make_app(run, "pairs")

    async def act(pilot: Pilot[None]) -> None:
        assert "step-000040.json: cannot be read" in frame_text(app).replace("\n", "")
        await press(pilot, "enter", "n", "down", "pagedown", "pageup")
        await press(pilot, "left")
        assert "row 7: prompt" in frame_text(app)

    drive(app, act, size=(200, 36))


def test_a_run_without_pairs_says_so(tmp_path: Path):
    app = make_app(make_run(tmp_path, "dpo", pairs=False), "pairs")

    async def act(pilot: Pilot[None]) -> None:
        assert "no pairs: no evaluation up to step 40 brought any" in frame_text(app)
        await press(pilot, "left", "right", "home", "end", "enter", "n", "escape")

    drive(app, act)


def test_pairs_of_two_data_sets_are_told_apart(run: RunDir):
    """The same row number in two data sets, one with brackets in its name."""
    for path in (run.path / "pairs").iterdir():
        content = json.loads(path.read_text())
        for one, source in zip(content["pairs"], ("a.jsonl", "org/b[x]:train"), strict=False):
            one.update(row=5, source=source)
        path.write_text(json.dumps(content))
    app = make_app(run, "pairs")

    async def act(pilot: Pilot[None]) -> None:
        assert "row 5 of a.jsonl: prompt" in frame_text(app)
        await press(pilot, "down")
        assert "row 5 of org/b[x]:train: prompt" in frame_text(app)

    drive(app, act)
