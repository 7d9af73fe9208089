"""A sweep on the screen: its table, and accuracy over KL of its runs below."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from made_runs import drive, make_app, press
from made_sweeps import make_sweep
from textual.pilot import Pilot

from localdpo.dashboard.app import DashboardApp
from localdpo.dashboard.appbase import frame_text
from localdpo.launch.processes import Job
from localdpo.records.rundir import RunLock
from localdpo.records.series import SeriesOptions, write_options
from localdpo.records.sweeps import SweepDir

pytestmark = pytest.mark.slow


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepDir:
    monkeypatch.chdir(tmp_path)
    return make_sweep(Path("runs"))


def test_a_sweep_is_opened_from_runs_and_a_run_from_there(sweep: SweepDir) -> None:
    app = make_app(None, "runs")

    async def act(pilot: Pilot[None]) -> None:
        line = next(line for line in frame_text(app).splitlines() if " grid " in line)
        assert {"stopped", "sweep", "3/4"} <= set(line.split())
        await press(pilot, "enter", "down", "enter")
        assert app.feed is not None
        assert app.feed.run.path == sweep.path / "beta-0.1"

    drive(app, act)


@pytest.mark.parametrize(("size", "wide"), [((80, 24), False), ((140, 40), True)])
def test_the_table_and_the_front(sweep: SweepDir, size: tuple[int, int], wide: bool) -> None:
    app = DashboardApp(Path("runs"), None, series=sweep, environment={"TERM": "xterm-256color"})

    async def act(pilot: Pilot[None]) -> None:
        text = frame_text(app)
        assert "grid  3 of 4 runs finished" in text
        assert "best: beta-0.1, accuracy 0.8 (higher is better)" in text
        row = next(line for line in text.splitlines() if "beta-0.1 " in line and "best" in line)
        assert {"finished", "0.8", "0.02"} <= set(row.split())
        assert ("accuracy at KL 0.02" in text) == wide
        assert "over KL" in text
        with RunLock(sweep):
            await press(pilot, "x")
            assert "Stop grid?" in frame_text(app)
            await press(pilot, "c")

    drive(app, act, size)


def test_a_narrow_table_has_what_the_best_is_the_best_by(sweep: SweepDir) -> None:
    app = DashboardApp(Path("runs"), None, series=sweep)
    write_options(sweep, SeriesOptions(best_by="loss"))

    async def act(pilot: Pilot[None]) -> None:
        headings = next(line for line in frame_text(app).splitlines() if line.startswith(" run "))
        assert headings.split() == ["run", "state", "KL", "loss"]

    drive(app, act, (80, 24))


def test_a_sweep_that_is_about_to_begin_is_not_said_to_be_stopped(sweep: SweepDir) -> None:
    os.mkfifo("end")
    maker = Job(["sh", "-c", "read line < end"], sweep.log, "the series", "")
    app = DashboardApp(Path("runs"), None, series=sweep, maker=maker)

    async def act(pilot: Pilot[None]) -> None:
        text = frame_text(app)
        assert "grid  starting" in text
        assert "go on with" not in text

    drive(app, act)
    Path("end").write_text("\n")
    maker.wait()


def test_a_damaged_sweep_is_said(sweep: SweepDir) -> None:
    sweep.recipe.write_text("{}\n")
    app = DashboardApp(Path("runs"), None, series=sweep)

    async def act(pilot: Pilot[None]) -> None:
        assert "sweep.json" in frame_text(app)

    drive(app, act)
