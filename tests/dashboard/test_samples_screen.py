from __future__ import annotations

from pathlib import Path

import pytest
from made_runs import drive, evaluation, make_app, make_run, press, settle, shown
from textual.pilot import Pilot

from localdpo.dashboard.appbase import frame_text
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    return make_run(Path("runs"), "dpo")


def test_the_newest_answers_beside_the_references(run: RunDir):
    app = make_app(run, "samples")

    async def act(pilot: Pilot[None]) -> None:
        text = frame_text(app)
        assert "step 40" in text
        assert "5 of 5, newest" in text
        assert "prompt 1 of 2" in text
        assert "Severity: ⟨SEV4⟩" in text
        assert "Severity: «SEV2»" in text
        assert "against reference: 12 words new, 5 gone" in text

    drive(app, act)


def test_the_slider_walks_over_the_evaluations(run: RunDir):
    app = make_app(run, "samples")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "left")
        assert "policy at step 30" in frame_text(app)
        await press(pilot, "home")
        text = frame_text(app)
        assert "policy at step 0" in text
        assert "0 words new, 0 gone" in text
        await press(pilot, "right")
        assert "policy at step 10" in frame_text(app)
        await press(pilot, "end")
        assert "policy at step 40" in frame_text(app)

    drive(app, act)


def test_a_click_on_the_slider_goes_there(run: RunDir):
    app = make_app(run, "samples")

    async def act(pilot: Pilot[None]) -> None:
        row = next(row for row, line in enumerate(frame_text(app).splitlines()) if "5 of 5" in line)
        await pilot.click(offset=(frame_text(app).splitlines()[row].index("┼"), row))
        await settle(pilot)
        assert "policy at step 0" in frame_text(app)

    drive(app, act)


def test_it_follows_new_evaluations_unless_it_was_moved(run: RunDir):
    app = make_app(run, "samples")

    def more(step: int) -> None:
        with run.events.open("ab") as log:
            log.write(b"".join(evaluation(run, step, 1_700_000_100.0 + step, 0, False)))

    async def act(pilot: Pilot[None]) -> None:
        more(50)
        await shown(pilot, "policy at step 50")
        await press(pilot, "left")
        more(60)
        await shown(pilot, "5 of 7")
        assert "policy at step 40" in frame_text(app)

    drive(app, act)


def test_prompts_are_walked_round_and_shown_as_they_are(run: RunDir):
    app = make_app(run, "samples")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "down")
        assert "Say [bold]hello[/bold]." in frame_text(app)
        await press(pilot, "down")
        assert "prompt 1 of 2" in frame_text(app)
        await press(pilot, "up")
        assert "prompt 2 of 2" in frame_text(app)

    drive(app, act)


def test_what_an_answer_is_compared_with(run: RunDir):
    app = make_app(run, "samples")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "home", "right", "right", "d")
        text = frame_text(app)
        assert "policy at step 10" in text
        assert "«times out»" in text
        await press(pilot, "d")
        text = frame_text(app)
        assert "«" not in text.split("this prompt at every")[0]
        assert "against" not in text.split("this prompt at every")[0]
        await press(pilot, "d")
        assert "against reference" in frame_text(app)

    drive(app, act)


def test_long_answers_are_scrolled_together(run: RunDir):
    app = make_app(run, "samples")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "pagedown")
        assert app.screen.query_one("#now").scroll_offset.y > 0
        await press(pilot, "pageup")
        assert app.screen.query_one("#now").scroll_offset.y == 0

    drive(app, act, size=(40, 14))


def test_a_run_without_samples_says_so(tmp_path: Path):
    run = RunDir.create(tmp_path, "new", "model: x\n")
    app = make_app(run, "samples")

    async def act(pilot: Pilot[None]) -> None:
        assert "no samples yet" in frame_text(app)
        await press(pilot, "left", "right", "home", "end", "up", "down", "d", "pagedown")
        assert "no samples yet" in frame_text(app)

    drive(app, act)
