from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from made_runs import drive, make_app, make_run, press, shown, step_metrics, until
from textual.pilot import Pilot

from localdpo.dashboard import app as app_module
from localdpo.dashboard.appbase import frame_text
from localdpo.dashboard.feed import IDLE_CPU, TRAINING_ON_CPU, CpuLimit, RenderThrottle
from localdpo.records.control import take
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunLock

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def machine() -> SimpleNamespace:
    """What a throttle sees: seconds, and processor seconds of the dashboard."""
    return SimpleNamespace(now=100.0, used=1.0)


class CountingThrottle(RenderThrottle):
    """Counts how often it is asked."""

    count = 0

    def is_due(self, *, beside_training: bool) -> bool:
        self.count += 1
        return super().is_due(beside_training=beside_training)


@pytest.fixture
def throttle(machine: SimpleNamespace) -> CountingThrottle:
    return CountingThrottle(lambda: machine.now, lambda: machine.used)


limits = pytest.mark.parametrize(
    ("limit", "beside"), [(IDLE_CPU, False), (TRAINING_ON_CPU, True)], ids=["alone", "beside training"]
)


@limits
def test_frames_are_due_until_the_burst_is_spent(
    throttle: RenderThrottle, machine: SimpleNamespace, limit: CpuLimit, beside: bool
):
    assert throttle.is_due(beside_training=beside)
    machine.used += 0.9 * limit.burst
    assert throttle.is_due(beside_training=beside)
    machine.used += 0.2 * limit.burst
    assert not throttle.is_due(beside_training=beside)


@limits
def test_a_frame_is_due_when_the_one_before_it_is_paid_for(
    throttle: RenderThrottle, machine: SimpleNamespace, limit: CpuLimit, beside: bool
):
    machine.used += limit.burst + 0.01
    machine.now += 0.9 * 0.01 / limit.share
    assert not throttle.is_due(beside_training=beside)
    machine.now += 0.2 * 0.01 / limit.share
    assert throttle.is_due(beside_training=beside)


@limits
def test_in_the_long_run_the_share_is_kept(
    throttle: RenderThrottle, machine: SimpleNamespace, limit: CpuLimit, beside: bool
):
    before, cost = machine.used, 0.03
    for _ in range(100_000):
        machine.now += 0.2
        if throttle.is_due(beside_training=beside):
            machine.used += cost
    spent = machine.used - before - limit.burst
    assert spent == pytest.approx(limit.share * 0.2 * 100_000, rel=0.02)


@limits
def test_nothing_is_put_off_for_ever(
    throttle: RenderThrottle, machine: SimpleNamespace, limit: CpuLimit, beside: bool
):
    machine.used += 1000.0
    assert not throttle.is_due(beside_training=beside)
    machine.now += limit.longest - 0.01
    assert not throttle.is_due(beside_training=beside)
    machine.now += 0.02
    assert throttle.is_due(beside_training=beside)


@limits
def test_what_else_is_spent_puts_no_frame_off_for_ever(
    throttle: RenderThrottle, machine: SimpleNamespace, limit: CpuLimit, beside: bool
):
    frames = []
    for _ in range(1000):
        machine.now += 0.1
        machine.used += 0.09  # of keys held down, say
        if throttle.is_due(beside_training=beside):
            frames.append(machine.now)
    waits = [later - earlier for earlier, later in pairwise(frames)]
    assert max(waits) <= limit.longest + 0.11


def test_rest_is_not_saved_up_beyond_a_burst(throttle: RenderThrottle, machine: SimpleNamespace):
    machine.now += 1e6
    assert throttle.is_due(beside_training=True)
    machine.used += TRAINING_ON_CPU.burst + 0.01
    assert not throttle.is_due(beside_training=True)


def test_beside_a_training_news_wait_but_keys_do_not(throttle: CountingThrottle, machine: SimpleNamespace):
    run = make_run(Path("runs"), "alive", steps=20, end=None)
    app = make_app(run, throttle=throttle)

    async def act(pilot: Pilot[None]) -> None:
        with RunLock(run), EventWriter(run.events) as log:
            await shown(pilot, "training")
            machine.used += 10
            log.write("step", 21, metrics=step_metrics(21, 0))
            count = throttle.count
            await until(pilot, lambda: throttle.count >= count + 2)
            assert "step 20/40" in frame_text(app)
            await press(pilot, "s")
            assert "smoothed 0.97" in frame_text(app)
            assert "step 20/40" in frame_text(app)
            machine.now += TRAINING_ON_CPU.longest + 0.1
            await shown(pilot, "step 21/40")

    drive(app, act)


def test_an_answer_and_the_end_of_the_worker_do_not_wait(throttle: RenderThrottle, machine: SimpleNamespace):
    run = make_run(Path("runs"), "alive", steps=20, end=None)
    app = make_app(run, throttle=throttle)

    async def act(pilot: Pilot[None]) -> None:
        with RunLock(run), EventWriter(run.events) as log:
            await shown(pilot, "training")
            machine.used += 10
            await press(pilot, "c")
            [asked] = take(run)
            log.write("control", 20, id=asked.id, command="checkpoint", ok=True, message="saved step 20")
            await until(pilot, lambda: "saved step 20" in [toast.message for toast in app._notifications])
            machine.used += 10
        await until(pilot, lambda: app.feed is not None and not app.feed.alive)
        assert "training" not in frame_text(app).split("\n")[1]

    drive(app, act)


def test_what_is_not_due_wakes_the_program_once_in_the_sleep_time(
    throttle: CountingThrottle, machine: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
):
    run = make_run(Path("runs"), "alive", steps=20, end=None)
    app = make_app(run, throttle=throttle)
    monkeypatch.setattr(app_module, "_SLEEP_SECONDS", 0.4)

    async def act(pilot: Pilot[None]) -> None:
        with RunLock(run):
            await shown(pilot, "training")
            machine.used += 10
            start, count = time.monotonic(), throttle.count
            await until(pilot, lambda: throttle.count >= count + 4)
            assert time.monotonic() - start >= 3 * 0.4

    drive(app, act)
