from __future__ import annotations

import os
from pathlib import Path

import pytest
from made_runs import drive, make_app, make_evaluation, make_run, press
from textual.pilot import Pilot

from localdpo.core.errors import UserError
from localdpo.core.rundir import RunDir
from localdpo.dashboard.once import frame_text
from localdpo.dashboard.terminal import Abilities
from localdpo.dashboard.themes import PALETTES
from localdpo.dashboard.verdicts import FILTERS, Estimate, evaluation_files, load_evaluation, win_rate
from localdpo.dashboard.widgets.rates import Drawing, interval_bar


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    run = make_run(Path("runs"), "dpo")
    make_evaluation(run)
    return run


# --- reading -------------------------------------------------------------------------------------------


def test_an_evaluation_is_read(run: RunDir):
    (path,) = evaluation_files(run)
    found = load_evaluation(path)
    assert (found.name, found.judge, found.prompts, found.versus) == ("rules", "rules", 4, ("sft", "dpo"))
    duel = found.duels[0]
    assert duel.rate == Estimate(0.5, 0.2, 0.8)
    assert [category.name for category in duel.categories] == ["outage", "slow"]
    judged = found.judged(duel)
    assert [one.outcome for one in judged] == ["won", "lost", "tied", "none"]
    counts = {name: sum(one.passes(name) for one in judged) for name in FILTERS}
    assert counts == {"all": 4, "lost": 1, "tied": 1, "flipped": 1, "won": 1, "none": 1}


def test_the_win_rate_is_of_the_newest_that_was_judged(run: RunDir, tmp_path: Path):
    newer = make_evaluation(run, "checks", judged=False)
    os.utime(newer, (2e9, 2e9))
    assert evaluation_files(run)[0] == newer
    assert win_rate(run) == 0.5
    damaged = run.path / "eval" / "damaged.json"
    damaged.write_text("{")
    os.utime(damaged, (2.1e9, 2.1e9))
    assert win_rate(run) == 0.5
    assert win_rate(make_run(tmp_path, "other")) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"v": 2}', '{"v": 1}'])
def test_a_damaged_evaluation_is_named(run: RunDir, text: str):
    path = run.path / "eval" / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"bad\.json: not an evaluation"):
        load_evaluation(path)


def test_bars_show_value_interval_and_middle():
    drawing = Drawing(PALETTES["dark"], Abilities(), 40)
    assert interval_bar(Estimate(0.7, 0.6, 0.8), 21, drawing).plain == "          ┊ ├─●─┤    "
    assert interval_bar(Estimate(0.5, 0.0, 1.0), 11, drawing).plain == "├────●────┤"
    assert interval_bar(Estimate(0.0, None, None), 11, drawing).plain == "●    ┊     "
    plain = Drawing(PALETTES["dark"], Abilities(unicode=False), 40)
    assert interval_bar(Estimate(0.7, 0.6, 0.8), 21, plain).plain == "          : [-O-]    "


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
        await press(pilot, "t")
        assert "SFT vs DPO: all (4)" in frame_text(app)
        await press(pilot, "t", "m")
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
        await press(pilot, "enter", "f", "t", "left")
        assert "rules: 2 of 2" in frame_text(app)
        await press(pilot, "left", "right")
        assert "checks: 1 of 2" in frame_text(app)

    drive(app, act)


def test_without_an_evaluation_it_says_how_to_make_one(tmp_path: Path):
    run = make_run(tmp_path, "dpo")
    app = make_app(run, "judge")

    async def act(pilot: Pilot[None]) -> None:
        assert "not evaluated yet; do it with: localdpo eval dpo --runs-dir" in frame_text(app)
        await press(pilot, "enter", "f", "t", "m", "m", "left", "right", "down", "up", "escape")
        make_evaluation(run)
        await pilot.pause(1.4)
        assert "DPO vs SFT" in frame_text(app)

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
