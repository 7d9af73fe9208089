"""The rounds of a series: opened from Runs, read from made files, at every size."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from made_runs import drive, make_app, make_run, press
from textual.pilot import Pilot

from localdpo.dashboard.app import DashboardApp
from localdpo.dashboard.appbase import frame_text
from localdpo.dashboard.screens.base import RunScreen
from localdpo.records.evaluations import RateEstimate
from localdpo.records.rundir import RunLock
from localdpo.records.series import RoundResult, RoundsDir, SeriesRecord, read_record, write_record

pytestmark = pytest.mark.slow

RATES = [RateEstimate(0.71, 0.61, 0.79), RateEstimate(0.52, 0.42, 0.62)]


@pytest.fixture
def series(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RoundsDir:
    monkeypatch.chdir(tmp_path)
    series = RoundsDir.create("runs", "again", "model: demo:model\n")
    assert isinstance(series, RoundsDir)
    for number in (1, 2):
        make_run(series.path, f"round-{number}")
    rounds = tuple(
        RoundResult(f"round-{n}", 150 + n, rate, RATES[0], 1.25 * n, 0.2, 40.0 + n, 38.0)
        for n, rate in enumerate(RATES, start=1)
    )
    ended = "round-2 is not clearly better than round-1: it wins 52% (42% to 62%)"
    write_record(series, SeriesRecord(3, rounds, ended))
    return series


def test_a_series_is_opened_from_runs_and_a_round_from_there(series: RoundsDir) -> None:
    app = make_app(None, "runs")

    async def act(pilot: Pilot[None]) -> None:
        line = next(line for line in frame_text(app).splitlines() if " again " in line)
        assert {"finished", "rounds", "2/3", "71%"} <= set(line.split())
        await press(pilot, "enter")
        text = frame_text(app)
        assert "again  ended" in text
        assert "ended: round-2 is not clearly better than round-1" in text
        assert "best: round-1" in text
        await press(pilot, "escape")
        assert "sorted by" in frame_text(app)
        await press(pilot, "enter", "down", "enter")
        assert isinstance(app.screen, RunScreen)
        assert app.screen.NAME == "live"
        assert app.feed is not None
        assert app.feed.run.path == series.round(2).path
        await press(pilot, "m", "escape")
        assert isinstance(app.screen, RunScreen)
        await press(pilot, "escape")
        assert "again  ended" in frame_text(app)
        await press(pilot, "escape")
        assert "sorted by" in frame_text(app)

    drive(app, act)


@pytest.mark.parametrize(("size", "pairs"), [((80, 24), False), ((120, 36), True)])
def test_the_table_and_its_bars(series: RoundsDir, size: tuple[int, int], pairs: bool) -> None:
    app = DashboardApp(Path("runs"), None, series=series, environment={"TERM": "xterm-256color"})

    async def act(pilot: Pilot[None]) -> None:
        lines = frame_text(app).splitlines()
        (row,) = (
            " ".join(line.split())
            for line in lines
            if "round-2" in line and "52% (" in line and "71% (" in line
        )
        assert row.endswith("52% (42% to 62%) 71% (61% to 79%) 2.5 +- 0.39 42 (+4)")
        assert ("152" in row) == pairs
        assert sum(line.count("●") for line in lines) == 4
        with RunLock(series):
            await press(pilot, "x")
            assert "Stop again?" in frame_text(app)
            await press(pilot, "c")

    drive(app, act, size)


@pytest.mark.parametrize("size", [(80, 24), (120, 36)])
def test_all_figures_of_several_rounds_are_seen(series: RoundsDir, size: tuple[int, int]) -> None:
    known = read_record(series).rounds[-1]
    rounds = tuple(replace(known, name=f"round-{number}") for number in range(1, 5))
    for name in ("round-3", "round-4"):
        make_run(series.path, name)
    write_record(series, SeriesRecord(4, rounds, "all rounds are done"))
    app = DashboardApp(Path("runs"), None, series=series)

    async def act(pilot: Pilot[None]) -> None:
        text = frame_text(app)
        for title in (
            "win rate against the round before",
            "win rate against the start",
            "KL from the start, nats",
            "tokens of an answer",
        ):
            assert title in text
        # In the table, and below each title.
        assert text.count("round-4") == 5

    drive(app, act, size)


def test_a_damaged_record_is_said(series: RoundsDir) -> None:
    series.record.write_text("{}\n")
    app = DashboardApp(Path("runs"), None, series=series)

    async def act(pilot: Pilot[None]) -> None:
        assert "series.json" in frame_text(app)

    drive(app, act)
