from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_runs import drive, make_app, make_run, press, step_metrics
from textual.pilot import Pilot

from localdpo.dashboard.once import frame_text
from localdpo.dashboard.pace import BESIDE_TRAINING, FREE, Pace, Ration
from localdpo.records.control import take
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunLock


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def machine() -> SimpleNamespace:
    """What a pace sees: seconds, and processor seconds of the dashboard."""
    return SimpleNamespace(now=100.0, used=1.0)


@pytest.fixture
def pace(machine: SimpleNamespace) -> Pace:
    return Pace(lambda: machine.now, lambda: machine.used)


rations = pytest.mark.parametrize(
    ("ration", "beside"), [(FREE, False), (BESIDE_TRAINING, True)], ids=["free", "beside training"]
)


@rations
def test_frames_are_due_until_the_burst_is_spent(
    pace: Pace, machine: SimpleNamespace, ration: Ration, beside: bool
):
    assert pace.is_due(beside_training=beside)
    machine.used += 0.9 * ration.burst
    assert pace.is_due(beside_training=beside)
    machine.used += 0.2 * ration.burst
    assert not pace.is_due(beside_training=beside)


@rations
def test_a_frame_is_due_when_the_one_before_it_is_paid_for(
    pace: Pace, machine: SimpleNamespace, ration: Ration, beside: bool
):
    machine.used += ration.burst + 0.01
    machine.now += 0.9 * 0.01 / ration.share
    assert not pace.is_due(beside_training=beside)
    machine.now += 0.2 * 0.01 / ration.share
    assert pace.is_due(beside_training=beside)


@rations
def test_in_the_long_run_the_share_is_kept(
    pace: Pace, machine: SimpleNamespace, ration: Ration, beside: bool
):
    before, cost = machine.used, 0.03
    for _ in range(100_000):
        machine.now += 0.2
        if pace.is_due(beside_training=beside):
            machine.used += cost
    spent = machine.used - before - ration.burst
    assert spent == pytest.approx(ration.share * 0.2 * 100_000, rel=0.02)


@rations
def test_nothing_is_put_off_for_ever(pace: Pace, machine: SimpleNamespace, ration: Ration, beside: bool):
    machine.used += 1000.0
    assert not pace.is_due(beside_training=beside)
    machine.now += ration.longest - 0.01
    assert not pace.is_due(beside_training=beside)
    machine.now += 0.02
    assert pace.is_due(beside_training=beside)


@rations
def test_what_else_is_spent_puts_no_frame_off_for_ever(
    pace: Pace, machine: SimpleNamespace, ration: Ration, beside: bool
):
    frames = []
    for _ in range(1000):
        machine.now += 0.1
        machine.used += 0.09  # of keys held down, say
        if pace.is_due(beside_training=beside):
            frames.append(machine.now)
    waits = [later - earlier for earlier, later in pairwise(frames)]
    assert max(waits) <= ration.longest + 0.11


def test_rest_is_not_saved_up_beyond_a_burst(pace: Pace, machine: SimpleNamespace):
    machine.now += 1e6
    assert pace.is_due(beside_training=True)
    machine.used += BESIDE_TRAINING.burst + 0.01
    assert not pace.is_due(beside_training=True)


def test_beside_a_training_news_wait_but_keys_do_not(pace: Pace, machine: SimpleNamespace):
    run = make_run(Path("runs"), "alive", steps=20, end=None)
    app = make_app(run, pace=pace)

    async def act(pilot: Pilot[None]) -> None:
        with RunLock(run), EventWriter(run.events) as log:
            while "training" not in frame_text(app):
                await pilot.pause(0.05)
            machine.used += 10
            log.write("step", 21, metrics=step_metrics(21, 0))
            await pilot.pause(0.5)
            assert "step 20/40" in frame_text(app)
            await press(pilot, "s")
            assert "smoothed 0.97" in frame_text(app)
            assert "step 20/40" in frame_text(app)
            machine.now += BESIDE_TRAINING.longest + 0.1
            await pilot.pause(1.5)
            assert "step 21/40" in frame_text(app)

    drive(app, act)


def test_an_answer_and_the_end_of_the_worker_do_not_wait(pace: Pace, machine: SimpleNamespace):
    run = make_run(Path("runs"), "alive", steps=20, end=None)
    app = make_app(run, pace=pace)

    async def act(pilot: Pilot[None]) -> None:
        with RunLock(run), EventWriter(run.events) as log:
            while "training" not in frame_text(app):
                await pilot.pause(0.05)
            machine.used += 10
            await press(pilot, "c")
            [asked] = take(run)
            log.write("control", 20, id=asked.id, command="checkpoint", ok=True, message="saved step 20")
            await pilot.pause(1.5)
            assert "saved step 20" in [notice.message for notice in app._notifications]
            machine.used += 10
        await pilot.pause(1.5)
        assert app.feed is not None
        assert not app.feed.alive
        assert "training" not in frame_text(app).split("\n")[1]

    drive(app, act)


def test_what_is_not_due_wakes_the_program_once_a_second(
    pace: Pace, machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(Path("runs"), "alive", steps=20, end=None)
    app = make_app(run, pace=pace)
    looks: list[float] = []
    is_due = pace.is_due

    def counted(*, beside_training: bool) -> bool:
        looks.append(machine.now)
        return is_due(beside_training=beside_training)

    monkeypatch.setattr(pace, "is_due", counted)

    async def act(pilot: Pilot[None]) -> None:
        with RunLock(run):
            while "training" not in frame_text(app):
                await pilot.pause(0.05)
            machine.used += 10
            await pilot.pause(4.0)
            looks.clear()
            await pilot.pause(3.0)

    drive(app, act)
    assert 1 <= len(looks) <= 4
