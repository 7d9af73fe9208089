from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from made_runs import drive, make_app, make_evaluation, make_run, press, shown, until
from textual.pilot import Pilot

from localdpo.core.errors import UserError
from localdpo.dashboard.appbase import frame_text
from localdpo.dashboard.screens.judge import FILTERS, passes
from localdpo.dashboard.terminal import PALETTES, Abilities
from localdpo.dashboard.widgets import evaluation
from localdpo.dashboard.widgets.evaluation import (
    EvaluationJob,
    EvaluationLine,
    RatesStyle,
    eval_command,
    interval_bar,
)
from localdpo.records.evaluations import RateEstimate, evaluation_files, judged_rate, read_evaluation
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("runs"), "dpo")
    make_evaluation(run)
    return run


# --- reading -------------------------------------------------------------------------------------------


def test_an_evaluation_is_read(run: RunDir):
    (path,) = evaluation_files(run)
    found = read_evaluation(path)
    assert (found.name, found.judge, found.prompts, found.versus) == ("rules", "rules", 4, ("sft", "dpo"))
    duel = found.duels[0]
    assert duel.win_rate == RateEstimate(0.5, 0.2, 0.8)
    assert [category.name for category in duel.categories] == ["outage", "slow"]
    judged = found.judged(duel)
    assert [verdict.outcome for _, verdict in judged] == ["won", "lost", "tied", "none"]
    counts = {name: sum(passes(verdict, name) for _, verdict in judged) for name in FILTERS}
    assert counts == {"all": 4, "lost": 1, "tied": 1, "flipped": 1, "won": 1, "none": 1}


def test_the_win_rate_is_of_the_newest_that_was_judged(run: RunDir, tmp_path: Path):
    newer = make_evaluation(run, "checks", judged=False)
    os.utime(newer, (2e9, 2e9))
    assert evaluation_files(run)[0] == newer
    assert (rate := judged_rate(run)) is not None
    assert rate.value == 0.5
    damaged = run.path / "eval" / "damaged.json"
    damaged.write_text("{")
    os.utime(damaged, (2.1e9, 2.1e9))
    assert (rate := judged_rate(run)) is not None
    assert rate.value == 0.5
    assert judged_rate(make_run(tmp_path, "other")) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"v": 2}', '{"v": 1}'])
def test_a_damaged_evaluation_is_named(run: RunDir, text: str):
    path = run.path / "eval" / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.json: not an evaluation"):
        read_evaluation(path)


def test_bars_show_value_interval_and_middle():
    drawing = RatesStyle(PALETTES["dark"], Abilities(), 40)
    assert interval_bar(RateEstimate(0.7, 0.6, 0.8), 21, drawing).plain == "          ┊ ├─●─┤    "
    assert interval_bar(RateEstimate(0.5, 0.0, 1.0), 11, drawing).plain == "├────●────┤"
    assert interval_bar(RateEstimate(0.0, None, None), 11, drawing).plain == "●    ┊     "
    plain = RatesStyle(PALETTES["dark"], Abilities(unicode=False), 40)
    assert interval_bar(RateEstimate(0.7, 0.6, 0.8), 21, plain).plain == "          : [-O-]    "


# --- the screen ----------------------------------------------------------------------------------------


def test_figures_and_verdicts(run: RunDir):
    app = make_app(run, "judge")

    async def act(pilot: Pilot[None]) -> None:
        text = frame_text(app)
        for words in (
            "judge: rules   4 prompts of demo:prompts/heldout",
            "DPO vs SFT  50.0%",
            "[20.0, 80.0]",
            "outage",
            "at equal lengths 45.0% [30.0, 60.0]",
            "without a verdict: 1 (unparsable 2)",
            "agrees with people: 75% of 12 votes",
            "▲ better",
            "No verdict: the interval holds 50.",
            "▲ won",
            "▼ lost",
            "flipped",
            "it invents a cause",
        ):
            assert words in text, words

    drive(app, act, size=(160, 40))


def test_filters(run: RunDir):
    app = make_app(run, "judge")

    async def act(pilot: Pilot[None]) -> None:
        expected = dict(zip(FILTERS, (4, 1, 1, 1, 1, 1), strict=True))
        for name, count in expected.items():
            assert f"DPO vs SFT: {name} ({count})" in frame_text(app)
            await press(pilot, "f")
        assert "DPO vs SFT: all (4)" in frame_text(app)

    drive(app, act)


def test_models_and_measured_figures(run: RunDir):
    app = make_app(run, "judge")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "w")
        assert "SFT vs DPO: all (4)" in frame_text(app)
        await press(pilot, "w", "m")
        text = frame_text(app)
        assert "all right" in text
        assert "win rate" not in text
        await press(pilot, "enter", "m")
        assert "win rate" in frame_text(app)

    drive(app, act, size=(80, 24))


def test_the_transcript(run: RunDir):
    app = make_app(run, "judge")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "down", "enter")
        text = frame_text(app)
        assert "Triage [report] 2." in text
        assert "«SEV2»" in text
        assert "⟨SEV4⟩" in text
        assert "DPO lost against SFT" in text
        assert "SFT shown first: SFT" in text
        assert "win rate" not in text
        await press(pilot, "down")
        assert "Triage [report] 3." in frame_text(app)
        await press(pilot, "up", "up", "up")
        assert "Triage [report] 1." in frame_text(app)
        await press(pilot, "escape", "down")
        assert "win rate" in frame_text(app)
        await press(pilot, "enter", "enter")
        assert "win rate" in frame_text(app)

    drive(app, act)


def test_several_evaluations(run: RunDir):
    newer = make_evaluation(run, "checks", judged=False)
    os.utime(newer, (2e9, 2e9))
    app = make_app(run, "judge")

    async def act(pilot: Pilot[None]) -> None:
        text = frame_text(app)
        assert "no judge" in text
        assert "checks: 1 of 2" in text
        assert "all right" in text
        await press(pilot, "enter", "f", "w", "left")
        assert "rules: 2 of 2" in frame_text(app)
        await press(pilot, "left", "right")
        assert "checks: 1 of 2" in frame_text(app)

    drive(app, act)


def test_without_an_evaluation_it_says_how_to_make_one(tmp_path: Path):
    run = make_run(tmp_path, "dpo")
    app = make_app(run, "judge")

    async def act(pilot: Pilot[None]) -> None:
        assert "not evaluated yet: press r, or run: localdpo eval dpo --runs-dir" in frame_text(app)
        await press(pilot, "enter", "f", "w", "m", "m", "left", "right", "down", "up", "escape")
        make_evaluation(run)
        await shown(pilot, "DPO vs SFT")

    drive(app, act)


def test_a_damaged_file_is_said(run: RunDir):
    path = run.path / "eval" / "bad.json"
    path.write_text("{")
    os.utime(path, (2e9, 2e9))
    app = make_app(run, "judge")

    async def act(pilot: Pilot[None]) -> None:
        assert "bad.json: not an evaluation" in frame_text(app)
        await press(pilot, "left")
        assert "DPO vs SFT" in frame_text(app)

    drive(app, act)


# --- an evaluation that is started here ------------------------------------------------------------------


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[list[str]]]:
    """Sets the program that evaluates; gives the options that it was started with."""

    def set_program(program: str) -> list[list[str]]:
        asked: list[list[str]] = []

        class Stand(EvaluationJob):
            def __init__(self, run: RunDir, options: Sequence[str]) -> None:
                asked.append(list(options))
                super().__init__(run, options, (sys.executable, "-c", program))

        monkeypatch.setattr(evaluation, "EvaluationJob", Stand)
        return asked

    return set_program


def test_an_evaluation_is_started_and_followed(tmp_path: Path, stand_in: Callable[[str], list[list[str]]]):
    run = make_run(tmp_path, "dpo")
    make_evaluation(run)
    made = run.path / "eval" / "rules.json"
    made.rename(tmp_path / "made.json")
    asked = stand_in(
        "import os, sys, time; print('answers 8 of 12', flush=True)\n"
        f"while not os.path.exists({str(tmp_path / 'go')!r}): time.sleep(0.02)\n"
        f"os.rename({str(tmp_path / 'made.json')!r}, {str(made)!r}); print(sys.argv)"
    )
    app = make_app(run, "judge")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "r")
        await shown(pilot, "Evaluate dpo?")
        dialog = app.screen.query_one("#dialog").region
        assert abs(dialog.x + dialog.width / 2 - 60) <= 1
        assert abs(dialog.y + dialog.height / 2 - 18) <= 1
        await press(pilot, *"--limit", "space", *"12", "enter")
        await shown(pilot, "evaluating: answers 8 of 12 (r stops it, and so does leaving)")
        (tmp_path / "go").touch()
        await shown(pilot, "DPO vs SFT")
        assert "evaluating" not in frame_text(app)

    drive(app, act)
    assert asked == [["--limit", "12"]]
    said = (run.path / "eval" / "worker.log").read_text()
    assert f"'eval', 'dpo', '--runs-dir', '{tmp_path}', '--limit', '12'" in said


def test_what_an_evaluation_refuses_is_said_and_the_line_kept(
    run: RunDir, stand_in: Callable[[str], list[list[str]]]
):
    asked = stand_in("print('error: --judge: no judge x'); exit(2)")
    app = make_app(run, "judge")

    async def act(pilot: Pilot[None]) -> None:
        line = app.screen.query_one(EvaluationLine)
        for key in ("x", "y"):
            await press(pilot, "r", key, "enter")
            await shown(pilot, "--judge: no judge x")
            # While it is running the key asks whether to stop it.
            await until(pilot, lambda: line.job is None)
        await press(pilot, "r", "escape")
        await press(pilot, "r", "quotation_mark", "enter")
        await shown(pilot, "the options cannot be read: No closing quotation")

    drive(app, act)
    assert asked == [["x"], ["xy"]]


def test_an_evaluation_is_stopped_by_key_and_by_leaving(
    run: RunDir, stand_in: Callable[[str], list[list[str]]]
):
    stand_in("import time; print('loading', flush=True); time.sleep(60)")
    app = make_app(run, "judge")
    jobs: list[EvaluationJob] = []

    async def act(pilot: Pilot[None]) -> None:
        line = app.screen.query_one(EvaluationLine)
        for _ in range(2):
            await press(pilot, "r", "enter")
            await shown(pilot, "evaluating: loading")
            assert line.job is not None
            jobs.append(line.job)
            await press(pilot, "r", "c")
            assert jobs[-1].is_running
            if len(jobs) == 1:
                await press(pilot, "r", "s")
                assert not jobs[0].is_running
                await shown(pilot, "stopped; r resumes it")

    drive(app, act)
    assert not jobs[1].is_running


def test_the_command_for_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert eval_command(RunDir(Path("runs/a"))) == "localdpo eval a"
    command = eval_command(RunDir(Path("my runs/a")), ["--judge", "mlx:x y"])
    assert command == "localdpo eval a --runs-dir 'my runs' --judge 'mlx:x y'"
