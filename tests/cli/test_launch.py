from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from localdpo.core.errors import UserError
from localdpo.launch.explain import explain_death, is_device_failure
from localdpo.launch.processes import Worker, start_worker, watch
from localdpo.records.events import Event, EventWriter
from localdpo.records.rundir import RunDir, RunLock
from localdpo.records.wording import resume_command

pytestmark = pytest.mark.slow

FAKE = str(Path(__file__).parent / "fake_worker.py")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.chdir(tmp_path)
    return RunDir.create("runs", "dpo", "model: org/tiny\n")


def start(run: RunDir, mode: str) -> Worker:
    return start_worker(run, command=[sys.executable, FAKE, mode])


def live(run: RunDir, mode: str) -> tuple[list[Event], list[str]]:
    """The events of a whole life of a fake worker, and what is said about its end."""
    worker = start(run, mode)
    events = list(watch(worker))
    return events, explain_death(worker.wait(), run, worker.log_start)


def test_a_run_is_watched_to_its_end(run: RunDir):
    events, death = live(run, "finish")
    assert [e.step for e in events if e.type == "step"] == [1, 2, 3, 4, 5, 6]
    assert events[0].type == "run.started"
    assert events[-1].type == "run.finished"
    assert death == []
    assert run.status() == "finished"
    assert run.worker_log.read_text() == "fake worker: finish\n"


def test_the_worker_has_a_session_of_its_own_and_no_input(run: RunDir):
    worker = start(run, "stop")
    for event in watch(worker):
        if event.type == "notice":
            break
    assert os.getsid(worker.pid) == worker.pid != os.getsid(0)
    assert run.is_running()
    assert run.pid() == worker.pid
    worker.interrupt()
    assert worker.wait() == 3
    worker.interrupt()


def test_anyone_can_watch_a_run_from_its_beginning(run: RunDir):
    worker = start(run, "stop")
    seen = []
    for event in watch(worker):
        if event.type == "notice":
            break
    for event in watch(run):
        seen.append(event.type)
        if event.type == "notice":
            worker.interrupt()
    worker.wait()
    assert seen[0] == "run.started"
    assert seen[-1] == "run.stopped"
    assert [event.type for event in watch(run)] == seen


def test_a_kill_is_told_with_signal_step_checkpoint_and_the_way_on(run: RunDir):
    events, death = live(run, "sigkill")
    assert events[-1].step == 4
    assert death[0] == (
        "the worker was killed by SIGKILL after step 4 of 6; "
        "the last checkpoint is runs/dpo/checkpoints/step-000003"
    )
    assert death[1] == "resume with: localdpo train --resume --run dpo"
    assert "out of memory" in death[2]
    assert run.status() == "crashed"


def test_a_resumed_worker_gives_only_its_own_events(run: RunDir):
    live(run, "sigkill")
    events, death = live(run, "finish")
    assert [e.step for e in events if e.type == "step"] == [4, 5, 6]
    assert death == []
    assert run.status() == "finished"


def test_a_failure_of_metal_gets_its_hint(run: RunDir):
    _, death = live(run, "metal")
    assert "killed by SIGABRT after step 4 of 6" in death[0]
    assert death[2].startswith("hint: the GPU ran out of memory: lower train.micro_batch_size")


def test_what_the_log_says_becomes_a_hint(run: RunDir):
    with EventWriter(run.events) as writer:
        writer.write("run.started", total_steps=6)
    run.worker_log.write_text("[METAL] failed: (0000000e:kIOGPUCommandBufferCallbackErrorInnocentVictim)\n")
    assert explain_death(-signal.SIGABRT, run)[2:] == [
        "hint: the GPU gave up on a command: resuming usually works"
    ]


def test_a_device_that_gave_up_is_told_from_a_mistake_and_from_a_bug(run: RunDir):
    run.worker_log.write_text("RuntimeError: [metal::malloc] Resource limit (499000) exceeded.\n")
    for code in (4, 1, 255, -signal.SIGABRT):
        assert is_device_failure(code, run)
    for code in (0, 2, 3, 130, -signal.SIGINT):
        assert not is_device_failure(code, run)
    assert explain_death(1, run)[-1].startswith("hint: the GPU driver has no room for more arrays")
    run.worker_log.write_text("ZeroDivisionError: in the step\n")
    assert not is_device_failure(1, run)


def test_hints_come_from_this_life_only(run: RunDir):
    live(run, "metal")
    worker = start(run, "trace")
    list(watch(worker))
    assert worker.log_start > 0
    death = explain_death(worker.wait(), run, worker.log_start)
    assert "failed (exit code 1) after step 4" in death[0]
    assert "ZeroDivisionError: in the step (more in runs/dpo/worker.log)" in death[0]
    assert len(death) == 2


def test_user_errors_are_told_without_anything_else(run: RunDir):
    _, death = live(run, "user-error")
    assert death == ["org/tiny: no such model", "data.train: no such file"]
    assert run.status() == "failed"


def test_a_user_error_that_is_only_in_the_events_is_told(run: RunDir):
    with EventWriter(run.events) as writer:
        writer.write("run.failed", error="no such model")
    assert explain_death(2, run) == ["no such model"]


def test_a_worker_that_never_began_shows_its_last_words(run: RunDir):
    events, death = live(run, "early")
    assert [event.type for event in events] == ["run.crashed"]
    assert death[0] == "the worker failed (exit code 1) before the run began; its last output:"
    assert death[-1] == "ImportError: no module named nothing"


def test_a_stop_says_how_to_go_on(run: RunDir):
    with EventWriter(run.events) as writer:
        writer.write("run.started", total_steps=6)
        writer.write("step", 2)
    for code in (3, 130, -signal.SIGINT, -signal.SIGTERM):
        first, second = explain_death(code, run)
        assert first.endswith("after step 2 of 6; there is no checkpoint yet")
        assert second == "resume with: localdpo train --resume --run dpo"


def test_a_signal_without_a_name_is_a_number(run: RunDir):
    assert explain_death(-100, run)[0].startswith("the worker was killed by signal 100 before")


def test_the_way_on_fits_a_shell(tmp_path: Path):
    assert (
        resume_command(RunDir("my runs/dpo-2")) == "localdpo train --resume --run dpo-2 --runs-dir 'my runs'"
    )


def test_a_living_run_is_not_started_again(run: RunDir):
    with RunLock(run), pytest.raises(UserError, match=rf"running \(process {os.getpid()}\)"):
        start(run, "finish")
    assert not run.worker_log.exists()


def test_two_starts_at_once_leave_one_worker(run: RunDir):
    """The second passes the look at the lock, then its worker finds the lock held and refuses."""
    first = start(run, "stop")
    for event in watch(first):
        if event.type == "notice":
            break
    second = subprocess.run(
        [sys.executable, FAKE, "finish", str(run.path)], capture_output=True, text=True, check=False
    )
    assert second.returncode == 2
    assert f"running (process {first.pid})" in second.stderr
    first.interrupt()
    assert first.wait() == 3


def test_extra_environment_reaches_the_worker(run: RunDir):
    code = "import os; print(os.environ['LOCALDPO_TEST'], os.environ['HOME'])"
    worker = start_worker(run, env={"LOCALDPO_TEST": "yes"}, command=[sys.executable, "-c", code])
    assert list(watch(worker)) == []
    assert run.worker_log.read_text() == f"yes {os.environ['HOME']}\n"


def test_the_worker_is_told_that_changes_are_accepted(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path, "run", "model: m\n")
    code = "import sys; print('told', sys.argv[1:])"
    for accept in (False, True):
        assert start_worker(run, command=[sys.executable, "-c", code], accept_changes=accept).wait() == 0
    told = [line for line in run.worker_log.read_text().splitlines() if line.startswith("told")]
    assert told == [f"told {[str(run.path)]}", f"told {['--accept-changes', str(run.path)]}"]
