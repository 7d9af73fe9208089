from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from made_runs import BEGAN, NOW, drive, make_app, make_run, press, resize, settle, shown, step_metrics, until
from textual.events import MouseScrollDown, MouseScrollUp
from textual.pilot import Pilot
from textual.widgets import Input

from localdpo.dashboard.app import DashboardApp
from localdpo.dashboard.appbase import frame_text
from localdpo.dashboard.keymap import keys_of
from localdpo.dashboard.screens.dialogs import JumpScreen, NoticesScreen
from localdpo.dashboard.system import SystemMonitor, SystemUsage
from localdpo.dashboard.widgets.chart import LineChart
from localdpo.dashboard.widgets.chartgrid import ChartGrid, grid_of
from localdpo.dashboard.widgets.log import LogView
from localdpo.records.events import EventWriter, encode_event
from localdpo.records.rundir import RunDir, RunLock

pytestmark = pytest.mark.slow

SEEN = re.compile(r"charts? [0-9 to]+of \d+.*|\d+ charts?\b.*")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def run() -> RunDir:
    return make_run(Path("runs"), "dpo")


def notice(level: str, name: str, at: float) -> bytes:
    said = {
        "level": level,
        "name": name,
        "message": f"{name} seen",
        "why": f"{name} why",
        "try": f"{name} try",
    }
    return encode_event("notice", 20, at, said)


def add(run: RunDir, *lines: bytes) -> None:
    with run.events.open("ab") as log:
        log.write(b"".join(lines))


def seen(app: DashboardApp) -> str:
    """The line below the charts."""
    found = SEEN.search(frame_text(app))
    assert found is not None, frame_text(app)
    return found.group().strip()


def charts(app: DashboardApp) -> list[str | None]:
    """The names of the charts that are shown."""
    if not app.screen.query_one(ChartGrid).display:
        return []
    return [chart.name for chart in app.screen.query(LineChart) if chart.display]


def test_every_key_of_live_is_tested_here():
    source = Path(__file__).read_text()
    for key in keys_of("live"):
        assert f'"{key.key}"' in source, f"{key.key}: {key.help}"


def test_smoothing_goes_round(run: RunDir):
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        said, frames = [], []
        for _ in range(6):
            said.append(seen(app).split(" · ")[1])
            frames.append(frame_text(app))
            # The tiles say it, too.
            assert ("~0." in frames[-1]) == ("not" not in said[-1])
            await press(pilot, "s")
        assert said == [
            "~ smoothed 0.9",
            "~ smoothed 0.97",
            "~ smoothed 0.99",
            "not smoothed",
            "~ smoothed 0.6",
            "~ smoothed 0.9",
        ]
        assert len(set(frames)) == 5

    drive(app, act)


def test_the_value_axis_can_be_logarithmic(run: RunDir):
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        plain = frame_text(app)
        await press(pilot, "y")
        assert "log axis" in seen(app)
        assert frame_text(app) != plain
        await press(pilot, "y")
        assert frame_text(app) == plain

    drive(app, act)


def test_zoom_pan_and_all_steps(run: RunDir):
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "plus")
        assert "steps 20 to 40" in seen(app)
        await press(pilot, "comma")
        assert "steps 15 to 35" in seen(app)
        await press(pilot, "equals_sign")
        assert "steps 25 to 35" in seen(app)
        await press(pilot, "full_stop")
        assert "steps 28 to 38" in seen(app)
        await press(pilot, "minus")
        await press(pilot, "end")
        assert "steps 20 to 40" in seen(app)
        await press(pilot, "0")
        assert "all steps" in seen(app)

    drive(app, act)


def test_the_cross_hair_moves_by_keys_and_takes_the_charts_along(run: RunDir):
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "left")
        assert "values at step 40" in seen(app)
        await press(pilot, "left", "left")
        assert "values at step 38" in seen(app)
        text = frame_text(app)
        assert f"{step_metrics(38, 0)['rewards/margins']:.3g}" in text.split("\n")[6]
        await press(pilot, "right")
        assert "values at step 39" in seen(app)
        await press(pilot, "plus", "plus")
        left = re.search(r"steps (\d+) to", seen(app))
        assert left is not None
        await press(pilot, *["left"] * 25)
        step = re.search(r"values at step (\d+)", seen(app))
        assert step is not None
        assert int(step.group(1)) < int(left.group(1))
        bounds = re.search(r"steps (\d+) to (\d+)", seen(app))
        assert bounds is not None
        assert int(bounds.group(1)) <= int(step.group(1)) <= int(bounds.group(2))
        await press(pilot, "escape")
        assert "values" not in seen(app)

    drive(app, act)


def test_choosing_and_maximising_charts(run: RunDir):
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        assert charts(app) == ["margin", "accuracy", "kl", "loss", "logp", "grad"]
        await press(pilot, "m")
        assert charts(app) == ["margin"]
        await press(pilot, "down")
        assert charts(app) == ["accuracy"]
        assert "reward accuracy (share of pairs)" in frame_text(app)
        await press(pilot, "right_square_bracket")
        assert charts(app) == ["kl"]
        await press(pilot, "escape")
        assert len(charts(app)) == 6
        await press(pilot, "down", "down")
        focused = app.focused
        assert isinstance(focused, LineChart)
        await press(pilot, "up", "enter")
        assert charts(app) == ["loss"]  # from the KL, which stayed chosen: two down, one up
        await press(pilot, "enter")
        assert len(charts(app)) == 6

    drive(app, act)


def test_pages_of_charts(run: RunDir):
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        assert seen(app).startswith("charts 1 to 6 of 9")
        await press(pilot, "right_square_bracket")
        assert charts(app) == ["speed", "memory", "lr"]
        assert seen(app).startswith("charts 7 to 9 of 9")
        await press(pilot, "right_square_bracket")
        assert seen(app).startswith("charts 1 to 6 of 9")
        await press(pilot, "left_square_bracket")
        assert seen(app).startswith("charts 7 to 9 of 9")
        await resize(pilot, 200, 60)
        assert seen(app).startswith("9 charts")

    drive(app, act)


def test_notices_are_acknowledged_one_by_one(run: RunDir):
    add(
        run,
        notice("info", "growth", NOW - 30),
        notice("critical", "nan", NOW - 20),
        notice("warning", "kl", NOW - 10),
    )
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        assert "‼ 00:13 step 20 CRITICAL nan seen" in frame_text(app)
        assert "nan why" in frame_text(app)
        assert "A all (3)" in frame_text(app)
        await press(pilot, "a")
        assert "WARNING kl seen" in frame_text(app)
        await press(pilot, "a")
        assert "NOTICE growth seen" in frame_text(app)
        await press(pilot, "a", "a")
        assert "seen" not in frame_text(app)[: frame_text(app).index("margin")]
        add(run, notice("critical", "kl", NOW - 5))
        await shown(pilot, "CRITICAL kl seen")

    drive(app, act)


def test_all_notices_with_what_to_try(run: RunDir):
    add(run, *(notice("warning", f"n{number}", NOW - number) for number in range(12)))
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "A")
        assert isinstance(app.screen, NoticesScreen)
        text = frame_text(app)
        assert "notices (12)" in text
        assert "why   n0 why" in text
        assert "try   n0 try" in text
        assert "n11 try" not in text
        await press(pilot, *["pagedown"] * 8)
        assert "n11 try" in frame_text(app)
        await press(pilot, "up", "down", "escape")
        assert not isinstance(app.screen, NoticesScreen)

    drive(app, act)


def test_the_log_is_shown_and_hidden(run: RunDir):
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        assert "step 40 loss" in frame_text(app)
        await press(pilot, "l")
        assert "step 40 loss" not in frame_text(app)
        await press(pilot, "l")
        assert "step 40 loss" in frame_text(app)
        await resize(pilot, 80, 24)
        await press(pilot, "l", "l")
        assert app.screen.query_one(LogView).size.height >= 4

    drive(app, act)


def test_the_log_scrolls_and_follows(run: RunDir):
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        log = app.screen.query_one(LogView)
        await press(pilot, "pageup", "pageup")
        assert not log.follow
        assert "end goes to the newest line" in frame_text(app)
        assert "step 40 loss" not in frame_text(app)
        await press(pilot, "pagedown", "pagedown")
        assert log.follow
        await press(pilot, "pageup", "end")
        assert log.follow
        assert "step 40 loss" in frame_text(app)
        await pilot._post_mouse_events([MouseScrollUp], LogView)
        await settle(pilot)
        assert not log.follow

    drive(app, act)


def test_the_log_is_filtered_by_words(run: RunDir):
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "l", "f", *"eval 20", "enter")
        assert "eval 20 loss" in frame_text(app)
        assert "step 40 loss" not in frame_text(app)
        assert "log: 1 of" in seen(app)
        assert not app.screen.query_one("#filter", Input).display
        await press(pilot, "escape")
        assert "step 40 loss" in frame_text(app)
        await press(pilot, "f", "q", "escape")
        assert app.is_running

    drive(app, act)


def test_charts_and_tiles_are_found_by_words(run: RunDir):
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "slash", *"GRAD")
        assert charts(app) == ["grad"]
        assert seen(app).startswith("1 chart with GRAD, of 9")
        tiles = frame_text(app).split("\n")[3]
        assert "grad norm" in tiles
        assert "margin" not in tiles
        await press(pilot, "enter", "m", "m")
        assert charts(app) == ["grad"]
        await press(pilot, "slash", *"zz")
        assert charts(app) == []
        assert "No chart has zz in its name." in frame_text(app)
        await press(pilot, "escape")
        assert len(charts(app)) == 6
        assert "margin" in frame_text(app).split("\n")[3]

    drive(app, act)


def test_the_machine_is_looked_at_only_while_that_is_shown(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    looks = []

    def look(monitor: SystemMonitor, pid: int | None) -> SystemUsage:
        looks.append(pid)
        return SystemUsage(cpu=0.5, memory=3.0, total=8.0)

    monkeypatch.setattr(SystemMonitor, "look", look)
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        assert "3/8 GB" not in frame_text(app)
        assert looks == []
        await press(pilot, "h")
        await shown(pilot, "3/8 GB")
        assert looks == [None]
        assert "worker" not in frame_text(app)
        await resize(pilot, 80, 24)
        assert "cpu 50%" in frame_text(app)
        await press(pilot, "h")
        assert "3/8 GB" not in frame_text(app)

    drive(app, act)


def test_a_letter_goes_to_a_chart_or_the_log_and_another_key_nowhere(run: RunDir):
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "j")
        top = frame_text(app).split("\n")
        assert any(line.startswith((" a ", "a ")) or " a " in line[:4] for line in top)
        await press(pilot, "d")
        assert isinstance(app.focused, LineChart)
        assert app.focused.name == charts(app)[2]
        await press(pilot, "j", "1")
        assert app.screen_name == "live"
        await press(pilot, "j")
        assert isinstance(app.screen, JumpScreen)
        await resize(pilot, 118, 36)
        await until(pilot, lambda: not isinstance(app.screen, JumpScreen))
        assert app.focused is not None
        await press(pilot, "j", "j")
        log = app.focused
        assert isinstance(log, LogView)
        await press(pilot, "up")
        assert not log.follow
        await press(pilot, "down")
        assert log.follow

    drive(app, act)


def test_escape_undoes_one_thing_after_the_other(run: RunDir):
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "plus", "m", "left")
        await press(pilot, "escape")
        assert "values" not in seen(app)
        assert len(charts(app)) == 1
        await press(pilot, "escape")
        assert len(charts(app)) == 6
        assert "steps 20 to 40" in seen(app)
        await press(pilot, "escape")
        assert "all steps" in seen(app)
        await press(pilot, "down", "escape")
        assert app.focused is None

    drive(app, act)


def test_the_mouse_points_zooms_and_opens(run: RunDir):
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        chart = next(iter(app.screen.query(LineChart)))
        await pilot.hover(chart, offset=(20, 4))
        await settle(pilot)
        assert "values at step" in seen(app)
        await pilot.hover("#tiles", offset=(3, 1))
        await settle(pilot)
        assert "values at step" not in seen(app)
        await pilot._post_mouse_events([MouseScrollUp], chart, offset=(20, 4))
        await settle(pilot)
        assert "steps 10 to 30" in seen(app) or "steps" in seen(app)
        await pilot._post_mouse_events([MouseScrollDown], chart, offset=(20, 4))
        await settle(pilot)
        assert "all steps" in seen(app)
        await pilot.click(chart, offset=(5, 3))
        assert app.focused is chart
        await pilot.double_click(chart, offset=(5, 3))
        await settle(pilot)
        assert charts(app) == ["margin"]

    drive(app, act)


def test_new_steps_move_the_charts(run: RunDir):
    run = make_run(Path("runs"), "alive", steps=20, end=None)
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        with RunLock(run), EventWriter(run.events) as log:
            await shown(pilot, "● training")
            before = frame_text(app)
            for step in range(21, 31):
                log.write("step", step, metrics=step_metrics(step, 0))
            await shown(pilot, "step 30/40")
            await shown(pilot, "step 30 loss")
            after = frame_text(app)
        assert before.split("\n")[8:18] != after.split("\n")[8:18]

    drive(app, act)


@pytest.mark.parametrize("key", ["space", "escape", "end"])
@pytest.mark.every(2)
def test_what_is_frozen_does_not_change_until_it_is_resumed(key: str):
    run = make_run(Path("runs"), "alive", steps=20, end=None)
    app = make_app(run, clock=lambda: BEGAN + 23)

    async def act(pilot: Pilot[None]) -> None:
        with RunLock(run), EventWriter(run.events) as log:
            await shown(pilot, "● training")
            await press(pilot, "space")
            assert "frozen: space resumes" in frame_text(app)
            before = frame_text(app).split("\n")
            log.write("step", 21, metrics=step_metrics(21, 0))
            await shown(pilot, "step 21/40")
            after = frame_text(app).split("\n")
            assert after[3:] == before[3:]
            await press(pilot, "s")
            assert "smoothed 0.97" in seen(app)
            await press(pilot, key)
            assert "frozen" not in frame_text(app)
            assert "step 21 loss" in frame_text(app)

    drive(app, act)


def test_a_crash_is_shown_with_the_resume_command():
    run = make_run(Path("runs"), "alive", steps=20, end=None)
    lock = RunLock(run)
    lock.acquire()
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        await shown(pilot, "● training")
        lock.release()
        await shown(pilot, "localdpo train --resume --run alive")
        text = frame_text(app)
        assert "crashed" in text
        assert "crashed seen" not in text
        await press(pilot, "s")
        assert "smoothed 0.97" in seen(app)

    drive(app, act)


@pytest.mark.parametrize("size", [(80, 24), (120, 36), (40, 12)])
@pytest.mark.every(3)
def test_before_the_first_step_it_says_what_it_waits_for(size: tuple[int, int]):
    run = RunDir.create(Path("runs"), "new", "model: m\n")
    run.events.write_bytes(encode_event("run.started", None, BEGAN, {"total_steps": 9}))
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        with RunLock(run):
            await shown(pilot, "No step yet: loading model and data.")
            assert charts(app) == []
            await press(pilot, *[key.key for key in keys_of("live") if key.key not in ("A", "slash", "f")])
            add(run, encode_event("step", 1, BEGAN + 1, {"metrics": {"loss": 2.0}}))
            await until(pilot, lambda: "No step yet" not in frame_text(app))
            assert charts(app) == ["loss"]

    drive(app, act, size)


def test_a_run_without_a_margin_has_no_empty_charts():
    run = RunDir.create(Path("runs"), "sft", "model: m\n")
    start = encode_event("run.started", None, BEGAN, {"total_steps": 30, "loss": "sft"})
    metrics = {"loss": 2.0, "grad_norm": 1.0, "tokens_per_second": 900.0}
    run.events.write_bytes(
        start + b"".join(encode_event("step", s, BEGAN + s, {"metrics": metrics}) for s in range(1, 20))
    )
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        assert charts(app) == ["loss", "grad", "speed"]
        assert "margin" not in frame_text(app)

    drive(app, act)


def test_a_gap_is_seen(run: RunDir):
    metrics = {**step_metrics(41, 0), "loss": None}
    add(run, encode_event("step", 41, BEGAN + 50, {"metrics": metrics}))
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        loss = next(chart for chart in app.screen.query(LineChart) if chart.name == "loss")
        rows = frame_text(app).split("\n")[loss.region.y : loss.region.bottom]
        assert any("✖" in row[loss.region.x : loss.region.right] for row in rows)

    drive(app, act)


def test_another_run_starts_afresh(run: RunDir):
    other = make_run(Path("runs"), "other", steps=10, seed=3)
    add(run, notice("warning", "kl", NOW - 10))
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        await press(pilot, "a", "plus", "left")
        app.attach(other)
        await settle(pilot)
        assert "all steps" in seen(app)
        assert "step 10 loss" in frame_text(app)
        assert "step 40 loss" not in frame_text(app)
        app.attach(run)
        await settle(pilot)
        assert "WARNING kl seen" in frame_text(app)

    drive(app, act)


@pytest.mark.parametrize(
    "environment",
    [{"NO_COLOR": "1"}, {"COLORTERM": "", "TERM": "xterm"}, {"LOCALDPO_ASCII": "1"}],
    ids=["no colour", "16 colours", "ascii"],
)
@pytest.mark.every(2)
def test_poorer_terminals_see_the_same_charts(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
):
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    app = make_app(run, environment=environment)

    async def act(pilot: Pilot[None]) -> None:
        text = frame_text(app)
        assert "reward margin" in text
        assert ("░" in text) or text.isascii()
        assert ("◆" in text) or "@" in text
        await press(pilot, "m", "left", "T", "escape", "escape")
        assert "reward margin" in frame_text(app)

    drive(app, act)


def test_any_size_at_any_moment(run: RunDir):
    add(run, notice("warning", "kl", NOW - 10))
    numbers = random.Random(3)
    app = make_app(run)

    async def act(pilot: Pilot[None]) -> None:
        for number in range(6):
            await resize(pilot, numbers.randint(1, 110), numbers.randint(1, 38))
            if number % 3 == 0:
                await press(
                    pilot, numbers.choice(["m", "l", "left", "right_square_bracket", "plus", "minus"])
                )
        await resize(pilot, 80, 24)
        await press(pilot, "escape", "escape", "escape", "0")
        assert charts(app)

    drive(app, act, paint=True)


@pytest.mark.parametrize(
    ("width", "height", "count", "grid"),
    [
        (80, 17, 14, (2, 1)),
        (80, 19, 14, (2, 2)),
        (120, 24, 14, (3, 2)),
        (200, 43, 14, (4, 4)),
        (200, 43, 3, (3, 1)),
        (10, 3, 14, (1, 1)),
        (0, 0, 0, (1, 1)),
    ],
)
def test_charts_to_a_page(width: int, height: int, count: int, grid: tuple[int, int]):
    assert grid_of(width, height, count) == grid
