"""How a worker died is in the log within moments; a supervisor that dies takes nobody along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from localdpo.launch.explain import UNSEEN_EXIT, ended_lines, explain_death
from localdpo.launch.processes import Worker, start_worker, watch
from localdpo.launch.supervise import main
from localdpo.records.events import Event, EventWriter, read_events
from localdpo.records.rundir import RunDir, RunLock

pytestmark = pytest.mark.slow

FAKE = str(Path(__file__).parent / "fake_worker.py")
RESUME = "resume with: localdpo train --resume --run dpo"
LAUNCHER = f"""
import sys, time
from localdpo.records.rundir import RunDir
from localdpo.launch.processes import start_worker
print(start_worker(RunDir(sys.argv[1]), command=[sys.executable, {FAKE!r}, "wait"]).pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    return RunDir.create("runs", "dpo", "model: org/tiny\n")


def start(run: RunDir, mode: str) -> Worker:
    worker = start_worker(run, command=[sys.executable, FAKE, mode])
    until(lambda: any(event.data.get("name") == "waiting" for event in worker.written_events()))
    return worker


def until(happens: Callable[[], object], seconds: float = 15.0) -> float:
    """Wait for it; how long it took. Fails after `seconds`."""
    began = time.monotonic()
    while not happens():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.01)
    return time.monotonic() - began


def last(run: RunDir) -> Event:
    return read_events(run.events)[-1]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGKILL", "SIGABRT"])
@pytest.mark.every(3)
def test_a_death_is_in_the_log_within_two_seconds(name: str, run: RunDir):
    worker = start(run, "wait")
    assert worker.pid == run.pid()
    os.kill(worker.pid, signal.Signals[name])
    until(lambda: last(run).type == "run.crashed", seconds=2.0)
    crashed = last(run)
    assert (crashed.step, crashed.data["signal"]) == (4, name)
    assert crashed.data["lines"][0].startswith(
        f"the worker was killed by {name} after step 4 of 6; the last "
    )
    assert crashed.data["lines"][1] == RESUME
    assert worker.wait() == -signal.Signals[name]
    assert explain_death(worker.wait(), run, worker.log_start) == crashed.data["lines"]
    assert run.pid() == worker.pid
    assert run.status() == "crashed"


def test_a_viewer_that_came_later_sees_the_death_too(run: RunDir):
    worker, seen = start(run, "wait"), []
    for event in watch(run):
        seen.append(event.type)
        if event.type == "notice":
            os.kill(run.pid() or 0, signal.SIGKILL)
    assert seen[-1] == "run.crashed"
    assert [event.type for event in watch(run)] == seen
    worker.wait()


def test_a_kill_of_the_launching_process_leaves_the_worker(run: RunDir):
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(run.path)], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        pid = int(launcher.stdout.readline())
        until(lambda: any(event.type == "notice" for event in read_events(run.events)))
        launcher.kill()
    time.sleep(0.3)
    assert run.is_running()
    os.kill(pid, signal.SIGKILL)
    until(lambda: last(run).type == "run.crashed", seconds=2.0)


def test_a_kill_of_the_supervisor_leaves_the_worker_and_the_lock_tells_its_death(run: RunDir):
    worker = start(run, "stop")
    worker.process.kill()
    worker.process.wait()
    assert run.is_running()
    assert worker.returncode is None
    worker.interrupt()
    assert worker.wait() == 3
    assert run.status() == "stopped"
    again = start(run, "wait")
    again.process.kill()
    again.process.wait()
    assert again.pid is not None
    os.kill(again.pid, signal.SIGKILL)
    assert again.wait() == UNSEEN_EXIT
    assert run.status() == "crashed"
    expected = [
        "the worker exited (exit status unknown) after step 4 of 6; "
        "the last checkpoint is runs/dpo/checkpoints/step-000003",
        RESUME,
    ]
    assert explain_death(again.wait(), run) == expected
    assert ended_lines(run, read_events(run.events)) == expected


def test_without_a_supervisor_the_log_tells_the_exit_code(run: RunDir):
    ends = ({"error": "x", "lines": ["x"]}, {"error": "KeyError: x"}, {"error": "RuntimeError: [malloc] x"})
    for fields, code in zip(ends, (2, 1, 4), strict=True):
        worker = start(run, "wait")
        worker.process.kill()
        worker.process.wait()
        with EventWriter(run.events) as log:
            log.write("run.failed", **fields)
        os.kill(worker.pid or 0, signal.SIGKILL)
        assert worker.wait() == code


def test_a_run_that_finished_after_its_supervisor_was_killed_has_finished(run: RunDir):
    worker = start_worker(run, command=[sys.executable, FAKE, "late"])
    worker.process.kill()
    worker.process.wait()
    assert worker.returncode is None
    Path("go").touch()
    assert [event.type for event in watch(worker)][-1] == "run.finished"
    assert worker.wait() == 0
    assert explain_death(worker.wait(), run) == []
    assert run.status() == "finished"


def test_a_crash_after_the_run_finished_is_no_crash(run: RunDir):
    code = (
        "import os, sys; from localdpo.records.events import EventWriter\n"
        "EventWriter(f'{sys.argv[1]}/events.jsonl').write('run.finished', 6, seconds=1.0); os.abort()"
    )
    assert start_worker(run, command=[sys.executable, "-c", code]).wait() == 0
    assert run.status() == "finished"


def test_a_signal_to_the_supervisor_lets_the_worker_save(run: RunDir):
    worker = start(run, "stop")
    worker.process.send_signal(signal.SIGTERM)
    assert worker.wait() == 3
    assert [event.type for event in read_events(run.events)].count("run.stopped") == 1


def test_a_stop_at_once_is_a_stop_in_the_log(run: RunDir):
    worker = start(run, "stop-slow")
    worker.interrupt()
    until(lambda: last(run).data.get("name") == "saving")
    worker.interrupt()
    assert worker.wait() == -signal.SIGINT
    stopped = last(run)
    assert (stopped.type, stopped.step, stopped.data["reason"]) == ("run.stopped", 4, "SIGINT")
    assert not stopped.data["saved"]
    assert run.status() == "stopped"
    assert ended_lines(run, read_events(run.events))[0].startswith("stopped at once after step 4 of 6")


def test_an_end_that_the_worker_wrote_is_not_written_twice(run: RunDir):
    for mode, ends in (("finish", ["run.finished"]), ("trace", ["run.finished", "run.crashed"])):
        start_worker(run, command=[sys.executable, FAKE, mode]).wait()
        kinds = [event.type for event in read_events(run.events)]
        assert [kind for kind in kinds if kind in ("run.finished", "run.crashed")] == ends
    assert last(run).data["exit_code"] == 1


def test_a_run_that_another_worker_has_is_left_alone(run: RunDir):
    with RunLock(run):
        assert main([str(run.path), sys.executable, FAKE, "finish"]) == 2
    assert not run.worker_log.exists()
    assert not run.events.exists()


def test_the_supervisor_says_how_it_is_used(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 2
    assert "RUN_DIR" in capsys.readouterr().err


def test_the_supervisor_is_the_standard_library_and_the_rooms_on_it_alone():
    code = (
        "import sys; old = set(sys.modules); import localdpo.launch.supervise; print(*set(sys.modules) - old)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    foreign = {name for name in loaded.split() if name.split(".")[0] not in sys.stdlib_module_names}
    rooms = {name.split(".")[1] for name in foreign if name.startswith("localdpo.")}
    assert rooms == {"core", "launch", "out", "records"}
    assert {name for name in foreign if not name.startswith("localdpo")} == set()


# --- how a run ended, from its log ---------------------------------------------------------------------


def event(type: str, step: int | None = None, **data: object) -> Event:
    return Event(v=1, time=0.0, type=type, step=step, data=data)


STARTED = [event("run.started", total_steps=6, model="org/tiny"), event("step", 2)]
WHERE = "after step 2 of 6; there is no checkpoint yet"


@pytest.mark.parametrize(
    ("end", "lines"),
    [
        ([event("run.stopped", 2, reason="SIGINT", saved=True)], [f"stopped {WHERE}", RESUME]),
        ([event("run.failed", error="a; b", lines=["a", "b"])], ["a", "b"]),
        (
            [event("run.failed", error="KeyError: 'x'", detail="the traceback is in worker.log")],
            [f"the worker failed {WHERE}; KeyError: 'x' (more in runs/dpo/worker.log)", RESUME],
        ),
        (
            [event("run.failed", error="RuntimeError: [METAL] Impacting Interactivity")],
            [
                f"the worker failed {WHERE}; RuntimeError: [METAL] Impacting Interactivity "
                "(more in runs/dpo/worker.log)",
                RESUME,
                "hint: macOS stopped a GPU command that held up the display: let the display sleep "
                "meanwhile, or run it where nothing is drawn (over SSH); a smaller batch alone does not "
                "help, a lower train.max_length may (a new run)",
            ],
        ),
        (
            [event("run.crashed", 2, lines=["dead", "resume with: elsewhere", "hint: h"])],
            ["dead", RESUME, "hint: h"],
        ),
        ([event("run.paused", 2)], [f"the worker exited (exit status unknown) {WHERE}", RESUME]),
        (
            [event("run.crashed", 2, lines=["old"]), event("run.resumed", 2)],
            [f"the worker exited (exit status unknown) {WHERE}", RESUME],
        ),
    ],
)
def test_the_log_alone_tells_the_end(end: list[Event], lines: list[str], run: RunDir):
    assert ended_lines(run, STARTED + end) == lines


def test_a_finished_run_and_one_that_has_not_begun(run: RunDir):
    lines = ended_lines(run, [*STARTED, event("run.finished", 6, seconds=65.0)])
    assert lines[0] == "finished in 1m 05s"
    assert ended_lines(run, []) == ["the run has not begun", RESUME]
