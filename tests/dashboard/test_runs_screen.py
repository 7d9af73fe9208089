from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from made_runs import BEGAN, drive, make_app, make_run, press, settle, shown, until
from textual.events import Key
from textual.pilot import Pilot
from textual.widgets import Input

from localdpo.dashboard.app import DashboardApp
from localdpo.dashboard.appbase import frame_text
from localdpo.dashboard.runstable import RunIndex
from localdpo.dashboard.screens import runs as runs_screen
from localdpo.dashboard.screens.base import RunScreen
from localdpo.dashboard.widgets.basic import ListTable
from localdpo.records.rundir import RunDir, RunLock

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs: `late` was started last, `dead` crashed."""
    monkeypatch.chdir(tmp_path)
    # However busy the machine is, one look reads every run.
    monkeypatch.setattr(RunIndex.refresh, "__defaults__", (60.0,))
    make_run(Path("runs"), "early", began=BEGAN)
    make_run(Path("runs"), "late", began=BEGAN + 900, seed=1)
    make_run(Path("runs"), "dead", began=BEGAN + 300, steps=20, end="run.crashed", loss="ipo", beta=0.3)
    return Path("runs")


def order(app: DashboardApp) -> list[str]:
    """The names in the table, from top to bottom."""
    table = frame_text(app).split("state")[1]
    found = {name: table.find(f"  {name} ") for name in ("early", "late", "dead")}
    return sorted((name for name, place in found.items() if place >= 0), key=lambda name: found[name])


def name_of(app: DashboardApp) -> str:
    assert isinstance(app.screen, RunScreen)
    return app.screen.NAME


def messages(app: DashboardApp) -> list[str]:
    return [notice.message for notice in app._notifications]


def the_app(name: str = "late") -> DashboardApp:
    return make_app(RunDir(Path("runs") / name), "runs")


def test_the_table(runs: Path):
    app = the_app()

    async def act(pilot: Pilot[None]) -> None:
        text = frame_text(app)
        assert order(app) == ["late", "dead", "early"]
        assert "3 runs, sorted by started ▼   in runs" in text
        assert "✖ crashed" in text
        line = next(line for line in text.splitlines() if " dead " in line)
        assert line.split()[:3] == ["✖", "crashed", "dead"]
        assert {"ipo", "0.3", "20/40", "0.650", "0.200", "1h"} <= set(line.split())

    drive(app, act)


def test_enter_opens_a_run(runs: Path):
    app = the_app()

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "down", "down", "enter")
        assert name_of(app) == "live"
        assert app.feed is not None
        assert app.feed.run.name == "early"
        await press(pilot, "2")
        assert "early" in frame_text(app)
        await press(pilot, "6", "enter")
        assert app.feed.run.name == "early"

    drive(app, act)


def test_the_screens_forget_the_run_before(runs: Path):
    app = the_app()

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "2", "home", "3", "home", "down", "enter", "6")
        await until(pilot, lambda: isinstance(app.focused, ListTable) and " dead " in frame_text(app))
        await press(pilot, "down")
        await until(pilot, lambda: app.screen._selected == "dead")
        await press(pilot, "enter")
        await until(pilot, lambda: app.feed is not None and app.feed.run.name == "dead")
        await press(pilot, "2")
        text = frame_text(app)
        assert "3 of 3, newest" in text
        assert "policy at step 20" in text
        await press(pilot, "3")
        assert "3 of 3, newest" in frame_text(app)
        assert "row 7: prompt" in frame_text(app)

    drive(app, act)


def test_sorting_and_turning_round(runs: Path):
    app = the_app()

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "S")
        assert order(app) == ["early", "dead", "late"]
        await press(pilot, "S", "s")
        assert "sorted by name" in frame_text(app)
        assert order(app) == ["dead", "early", "late"]
        for _ in range(20):
            await press(pilot, "s")
            if "sorted by acc" in frame_text(app):
                break
        assert order(app)[-1] == "dead"

    drive(app, act)


def test_filtering(runs: Path):
    app = the_app()

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "slash", *"crash")
        assert order(app) == ["dead"]
        assert "1 of 3 runs" in frame_text(app)
        await press(pilot, "enter", "s")
        assert "filter: crash" in frame_text(app)
        await press(pilot, "slash", "escape")
        assert len(order(app)) == 3
        await press(pilot, "slash", *"nothing here", "enter", "enter", "space", "D")
        assert order(app) == []

    drive(app, act)


def test_what_is_typed_at_once_after_the_slash_is_for_the_filter(runs: Path):
    app = the_app()

    async def act(pilot: Pilot[None]) -> None:
        for key in ("slash", *"xDea/d"):
            character = "/" if key == "slash" else key
            name = {"/": "slash", "D": "upper_d"}.get(key, key)
            app.post_message(Key(name, character))
        await settle(pilot)
        assert app.screen.query_one(Input).value == "xDea/d"
        assert len(app.screen_stack) == 2

    drive(app, act)


def test_keys_of_long_tables(runs: Path):
    for number in range(30):
        make_run(runs, f"more-{number:02d}", steps=0, began=BEGAN - number, pairs=False)
    app = the_app()

    async def act(pilot: Pilot[None]) -> None:
        table = app.screen.query_one("#runs", runs_screen.ListTable)
        await press(pilot, "end")
        assert table.cursor_row == 32
        await press(pilot, "pageup")
        assert 0 < table.cursor_row < 32
        await press(pilot, "home")
        assert table.cursor_row == 0
        await press(pilot, "pagedown")
        assert table.cursor_row > 0

    drive(app, act)


def test_marking_up_to_a_limit(runs: Path):
    for number in range(8):
        make_run(runs, f"more-{number:02d}", steps=10, began=BEGAN - number, pairs=False)
    app = the_app()

    async def act(pilot: Pilot[None]) -> None:
        await until(pilot, lambda: isinstance(app.focused, ListTable) and " late " in frame_text(app))
        await press(pilot, "space", "down", "space")
        await until(pilot, lambda: " A ✓ finished" in frame_text(app) and " B ✖ crashed" in frame_text(app))
        await press(pilot, "space")
        await until(pilot, lambda: " B ✖ crashed" not in frame_text(app))
        for _ in range(9):
            await press(pilot, "down", "space")
        assert any("at most" in message for message in messages(app))
        await press(pilot, "u")
        await until(pilot, lambda: " A ✓" not in frame_text(app))

    drive(app, act)


def test_two_marked_runs_are_compared(runs: Path):
    app = the_app()

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "space", "down", "space")
        await shown(pilot, "loss.beta")
        text = frame_text(app)
        assert "0.1" in text
        assert "0.3" in text
        assert "train.seed" in text

    drive(app, act)


def test_deleting_asks_and_removes_the_folder(runs: Path):
    app = the_app()

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "down", "D")
        assert "Delete runs/dead?" in frame_text(app)
        await press(pilot, "c")
        assert (runs / "dead").is_dir()
        await press(pilot, "D", "d")
        assert not (runs / "dead").exists()
        await until(pilot, lambda: order(app) == ["late", "early"])
        assert name_of(app) == "runs"

    drive(app, act)


def test_deleting_the_run_that_is_open_closes_it(runs: Path):
    app = the_app("late")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "D", "d")
        assert app.feed is None
        await press(pilot, "1")
        assert name_of(app) == "runs"
        assert any("no run is open" in message for message in messages(app))

    drive(app, act)


def test_a_running_run_is_neither_deleted_nor_started_again(runs: Path):
    app = the_app("late")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "D")
        assert name_of(app) == "runs"
        await press(pilot, "R")
        assert sum("running" in message for message in messages(app)) == 2

    with RunLock(RunDir(runs / "late")):
        drive(app, act)
    assert (runs / "late").is_dir()


def test_resuming_starts_a_worker_and_attaches(runs: Path, monkeypatch: pytest.MonkeyPatch):
    started: list[str] = []

    class FakeWorker:
        returncode = None
        pid = 1

    def start(run: RunDir, *rest: Any) -> Any:
        started.append(run.name)
        return FakeWorker()

    monkeypatch.setattr(runs_screen, "start_worker", start)
    app = the_app("late")

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "R")
        assert any("is finished" in message for message in messages(app))
        await press(pilot, "down", "R")
        assert started == ["dead"]
        assert name_of(app) == "live"
        assert app.feed is not None
        assert app.feed.run.name == "dead"
        # The worker has not taken the lock yet: what the log says of the end before is not shown.
        assert "killed by SIGKILL" not in frame_text(app).split("log")[0]

    drive(app, act)


def test_the_table_keeps_up_with_the_folder(runs: Path):
    clock = iter(float(second) for second in range(10_000))
    app = make_app(RunDir(runs / "late"), "runs", clock=lambda: 1_700_000_000.0 + next(clock))

    async def act(pilot: Pilot[None]) -> None:
        make_run(runs, "newest", began=BEGAN + 5000, steps=10, end=None)
        await shown(pilot, "newest")

    drive(app, act)
