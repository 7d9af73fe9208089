"""`localdpo ctl` against real workers, and what happens to them: pauses, signals, stops, deaths."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command import localdpo
from tiny_folders import recipe_text, write_pairs

from localdpo.cli.runs import ctl
from localdpo.core.errors import UserError
from localdpo.launch.explain import ended_lines
from localdpo.launch.processes import Worker, start_worker
from localdpo.records.checkpoints import newest_checkpoint
from localdpo.records.control import COMMANDS
from localdpo.records.events import Event, EventWriter, read_events
from localdpo.records.rundir import RunDir, RunLock

pytestmark = pytest.mark.slow


def until(happens: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path, own_cache: Path) -> RunDir:
    """A run that would take hours."""
    monkeypatch.chdir(tmp_path)
    text = recipe_text(
        tiny_model,
        write_pairs(tmp_path / "pairs.jsonl", 8),
        write_pairs(tmp_path / "valid.jsonl", 2, start=50),
        train={"epochs": 100_000, "batch_size": 2},
        eval={"every": 100_000},
        save={"every": 100_000},
    )
    return RunDir.create("runs", "dpo", text)


@pytest.fixture
def worker(run: RunDir) -> Iterator[Worker]:
    """Its worker, at work on steps."""
    worker = start_worker(run, env={"HF_HUB_OFFLINE": "1"})
    until(lambda: steps(run) > 2)
    yield worker
    with contextlib.suppress(ProcessLookupError):
        if worker.pid is not None:
            os.kill(worker.pid, signal.SIGKILL)
    worker.wait()


def steps(run: RunDir) -> int:
    return sum(event.type == "step" for event in read_events(run.events))


def last(run: RunDir, type: str) -> Event:
    return next(event for event in reversed(read_events(run.events)) if event.type == type)


def told(capsys: pytest.CaptureFixture[str], command: str, **options: object) -> str:
    capsys.readouterr()
    ctl("dpo", command, **options)  # type: ignore[arg-type]
    return capsys.readouterr().out.strip()


def test_a_run_is_steered_from_elsewhere(run: RunDir, worker: Worker, capsys: pytest.CaptureFixture[str]):
    assert told(capsys, "pause").startswith("paused after step ")
    taken = steps(run)
    time.sleep(0.5)
    assert steps(run) == taken
    assert told(capsys, "checkpoint") == f"saved as checkpoints/step-{taken:06d}"
    assert newest_checkpoint(run) == run.checkpoint_path(taken)
    assert told(capsys, "evaluate") == f"evaluating after step {taken}"
    until(lambda: last(run, "eval").step == taken)
    with pytest.raises(UserError, match=f"runs/dpo: step {taken} is evaluated already"):
        ctl("dpo", "evaluate")
    assert told(capsys, "resume") == f"resumed after step {taken}"
    assert last(run, "run.continued").data["seconds"] > 0.5
    until(lambda: steps(run) > taken)
    done = localdpo("ctl", "dpo", "stop", "--no-save")
    assert (done.returncode, done.stdout, done.stderr) == (0, "stopping without saving\n", "")
    assert worker.wait() == 3
    assert newest_checkpoint(run) == run.checkpoint_path(taken)
    assert not last(run, "run.stopped").data["saved"]
    assert ended_lines(run, read_events(run.events))[0].startswith("stopped after step ")
    with pytest.raises(UserError, match="no worker is running, so there is nothing to pause"):
        ctl("dpo", "pause")


@pytest.mark.long
def test_ctrl_c_in_a_pause_saves_and_stops(run: RunDir, worker: Worker):
    ctl("dpo", "pause")
    worker.interrupt()
    assert worker.wait() == 3
    stopped = last(run, "run.stopped")
    assert (stopped.data["reason"], stopped.data["saved"]) == ("SIGINT", True)
    assert newest_checkpoint(run) == run.checkpoint_path(stopped.step or 0)


@pytest.mark.long
def test_time_stopped_by_a_signal_is_in_no_figure_and_a_shutdown_of_every_process_is_one_request(
    run: RunDir, worker: Worker
):
    assert worker.pid is not None
    until(lambda: steps(run) > 10)
    before = steps(run)
    os.kill(worker.pid, signal.SIGSTOP)
    time.sleep(2.5)
    os.kill(worker.pid, signal.SIGCONT)
    until(lambda: steps(run) > before + 10)
    absent = last(run, "run.continued")
    assert absent.data["reason"] == "SIGSTOP"
    assert absent.data["seconds"] > 2.2
    os.kill(worker.pid, signal.SIGTERM)
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 3
    assert last(run, "run.stopped").data["saved"]
    events = [event for event in read_events(run.events) if event.type == "step"]
    worked = sum(event.data["metrics"]["step_seconds"] for event in events)
    # Other work of the machine may make steps slow, so what they add up to is compared with the wall.
    assert worked < events[-1].time - events[0].time - 2.2 + events[0].data["metrics"]["step_seconds"]


@pytest.mark.long
def test_a_killed_worker_is_explained_within_two_seconds(run: RunDir, worker: Worker):
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    until(lambda: any(event.type == "run.crashed" for event in worker.written_events()), seconds=2.0)
    crashed = last(run, "run.crashed")
    assert crashed.data["signal"] == "SIGKILL"
    assert crashed.data["lines"][1] == "resume with: localdpo train --resume --run dpo"
    assert run.status() == "crashed"


# --- without a worker that answers ---------------------------------------------------------------------


@pytest.fixture
def deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDir]:
    """A run whose lock is held by a worker that answers nothing."""
    monkeypatch.chdir(tmp_path)
    run = RunDir.create("runs", "dpo", "model: a\n")
    with RunLock(run), EventWriter(run.events) as log:
        log.write("run.started", total_steps=6, recipe={"eval": {"every": 3}})
        log.write("step", 3, metrics={"step_seconds": 1.0})
        log.write("phase", 3, phase="evaluating")
        yield run


def test_a_worker_that_is_busy_is_described(deaf: RunDir, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(
        UserError, match=r"no answer within 2\.2 s: the worker is busy \(evaluating, step 3 of 6"
    ):
        ctl("dpo", "pause", timeout=2.2)
    assert capsys.readouterr().err.startswith("waiting: the worker is busy (evaluating, step 3 of 6")
    with pytest.raises(UserError, match="no answer within 0 s"):
        ctl("dpo", "pause", timeout=0.0)


def test_mistakes_on_the_command_line(deaf: RunDir):
    said = localdpo("ctl", "dpo", "dance")
    assert said.returncode == 2
    assert said.stderr.startswith("error: COMMAND: 'dance' is not one of 'pause', 'resume', ")
    with pytest.raises(UserError, match="--no-save works only with stop, not with pause"):
        ctl("dpo", "pause", save=False)
    with pytest.raises(UserError, match="no run named 'dop'"):
        ctl("dop", "pause")
    assert not deaf.control.exists()


def test_the_help_names_every_command():
    words = " ".join(localdpo("ctl", "--help").stdout.split())
    assert all(f"{command}: {meaning}" in words for command, meaning in COMMANDS.items())
