from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from localdpo.core import rundir
from localdpo.core.atomic import published_dir
from localdpo.core.checkpoints import set_latest
from localdpo.core.errors import UserError
from localdpo.core.events import Event, EventWriter
from localdpo.core.rundir import RunDir, RunLock, find_run, list_runs, new_run_name, runs_of, state_of

HOLDER = """
import sys, time
from localdpo.core.rundir import RunDir, RunLock
with RunLock(RunDir(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

LOOKER = """
import sys, time
from localdpo.core.rundir import RunDir
run = RunDir(sys.argv[1])
print("looking", flush=True)
while True:
    run.is_running()
    time.sleep(0.0001)
"""


@contextmanager
def holder(run: RunDir) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `run`."""
    command = [sys.executable, "-c", HOLDER, str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return RunDir.create(tmp_path / "runs", "dpo", "model: a\n")


def publish(run: RunDir, step: int) -> Path:
    path = run.checkpoint_path(step)
    run.checkpoints.mkdir(exist_ok=True)
    with published_dir(path, 1) as temp:
        (temp / "state.json").write_text("{}")
    set_latest(path)
    return path


# --- making runs ---------------------------------------------------------------------------------------


def test_a_run_is_made_with_its_recipe(run: RunDir):
    assert run.name == "dpo"
    assert run.recipe.read_text() == "model: a\n"
    assert os.listdir(run.path) == ["recipe.yaml"]
    assert run.status() == "new"


def test_the_same_recipe_gives_the_same_run(run: RunDir):
    run.events.write_text("kept")
    again = RunDir.create(run.path.parent, "dpo", "model: a\n")
    assert again.path == run.path
    assert run.events.read_text() == "kept"


def test_a_run_belongs_to_one_recipe(run: RunDir):
    with pytest.raises(UserError, match=r"belongs to another recipe; choose another --run name"):
        RunDir.create(run.path.parent, "dpo", "model: b\n")
    with pytest.raises(UserError, match=r"another recipe \(model: a / model: b\)"):
        RunDir.create(run.path.parent, "dpo", "model: b\n", lambda old, new: f"{old.strip()} / {new.strip()}")
    assert run.recipe.read_text() == "model: a\n"


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("")
    with pytest.raises(UserError, match=r"no recipe\.yaml, but chapter\.txt"):
        RunDir.create(tmp_path, "thesis", "model: a\n")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="found a file in the way"):
        RunDir.create(tmp_path, "file", "model: a\n")
    with pytest.raises(UserError, match="found a file in the way"):
        RunDir.create(tmp_path / "file", "dpo", "model: a\n")


def test_a_run_folder_whose_maker_died_is_taken_over(tmp_path: Path):
    (tmp_path / "dpo").mkdir()
    (tmp_path / "dpo" / ".recipe.yaml.tmp-0123456789ab").write_text("mod")
    run = RunDir.create(tmp_path, "dpo", "model: a\n")
    assert os.listdir(run.path) == ["recipe.yaml"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "-x", ".hidden", "a b", "é", "x" * 101, "a\n"]
)
def test_names_that_are_no_plain_file_names_are_refused(name: str, tmp_path: Path):
    with pytest.raises(UserError, match="is no name for a run"):
        RunDir.create(tmp_path, name, "model: a\n")
    assert os.listdir(tmp_path) == []


def test_new_names_count_up(tmp_path: Path):
    assert new_run_name(tmp_path, "dpo") == "dpo"
    for expected in ("dpo", "dpo-2", "dpo-3"):
        assert RunDir.create(tmp_path, new_run_name(tmp_path, "dpo"), "m").name == expected
    assert new_run_name(tmp_path, "my recipe, v2!") == "my-recipe-v2-"
    assert new_run_name(tmp_path, "...") == "run"


# --- finding runs --------------------------------------------------------------------------------------


def test_runs_are_listed_by_their_last_activity(tmp_path: Path):
    for age, name in enumerate(["old", "dpo", "dpo-2", "dpo-other"]):
        run = RunDir.create(tmp_path, name, "m")
        os.utime(run.recipe, (age, age))
    (tmp_path / "notes").mkdir()
    EventWriter(tmp_path / "old" / "events.jsonl").close()
    assert [run.name for run in list_runs(tmp_path)] == ["old", "dpo-other", "dpo-2", "dpo"]
    assert [run.name for run in runs_of(tmp_path, "dpo")] == ["dpo-2", "dpo"]
    assert find_run(tmp_path).name == "old"
    assert find_run(tmp_path, "dpo").name == "dpo"
    with pytest.raises(UserError, match=r"no run named 'dop'; the latest are old, dpo-other"):
        find_run(tmp_path, "dop")


def test_no_runs_is_said(tmp_path: Path):
    assert list_runs(tmp_path / "missing") == []
    with pytest.raises(UserError, match="no runs here"):
        find_run(tmp_path / "missing")


# --- leftovers -----------------------------------------------------------------------------------------


def test_cleaning_takes_the_leftovers_of_a_crash(run: RunDir):
    publish(run, 1)
    (run.checkpoints / ".step-000002.tmp-0123456789ab").mkdir()
    (run.path / ".recipe.yaml.tmp-0123456789ab").write_text("")
    run.clean()
    assert sorted(os.listdir(run.checkpoints)) == ["LATEST", "step-000001"]
    assert sorted(os.listdir(run.path)) == ["checkpoints", "recipe.yaml"]


# --- lock and state ------------------------------------------------------------------------------------


def test_the_lock_is_held_while_its_process_lives_and_free_after_sigkill(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rundir, "_LOCK_PATIENCE", 0.05)
    assert not run.is_running()
    with holder(run) as process:
        assert run.is_running()
        assert run.status() == "running"
        assert run.pid() == process.pid
        with pytest.raises(UserError, match=rf"the run is running \(process {process.pid}\)"):
            RunLock(run).acquire()
        assert run.pid() == process.pid
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not run.is_running()
        with RunLock(run):
            assert run.is_running()
            assert run.pid() == os.getpid()
    assert not run.is_running()


def test_looking_at_the_lock_never_keeps_a_worker_out(run: RunDir):
    """Two processes that look all the time, and a worker that starts a hundred times."""
    with RunLock(run):
        pass
    lookers = [
        subprocess.Popen([sys.executable, "-c", LOOKER, str(run.path)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    try:
        for process in lookers:
            assert process.stdout is not None
            assert process.stdout.readline() == b"looking\n"
        for _ in range(100):
            with RunLock(RunDir.create(run.path.parent, "dpo", "model: a\n")):
                pass
    finally:
        for process in lookers:
            process.kill()
            process.communicate()


def test_a_lock_without_a_number_has_no_pid(run: RunDir):
    assert run.pid() is None
    run.lock.write_text("what")
    assert run.pid() is None


@pytest.mark.parametrize(
    ("types", "state"),
    [
        ([], "new"),
        (["run.started", "step"], "crashed"),
        (["run.started", "step", "run.finished"], "finished"),
        (["run.started", "run.failed"], "failed"),
        (["run.failed"], "failed"),
        (["run.started", "run.stopped"], "stopped"),
        (["run.started", "run.stopped", "run.resumed", "step"], "crashed"),
        (["run.started", "run.stopped", "run.started", "run.resumed", "run.finished"], "finished"),
        (["run.started", "run.finished", "notice"], "finished"),
    ],
)
def test_the_state_follows_from_log_and_lock(types: list[str], state: str):
    events = [Event(v=1, time=0.0, type=type, step=None) for type in types]
    assert state_of(events, running=False) == state
    assert state_of(events, running=True) == "running"
