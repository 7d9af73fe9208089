from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from localdpo.core.atomic import published_dir
from localdpo.core.errors import UserError
from localdpo.records import rundir
from localdpo.records.checkpoints import set_latest
from localdpo.records.events import Event, EventWriter
from localdpo.records.rundir import (
    RunDir,
    RunLock,
    find_run,
    list_runs,
    new_run_name,
    path_in,
    runs_below,
    runs_of,
    state_of,
)

HOLDER = """
import sys, time
from localdpo.records.rundir import RunDir, RunLock
with RunLock(RunDir(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""

LOOKER = """
import sys, time
from localdpo.records.rundir import RunDir
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
    assert sorted(os.listdir(run.path)) == ["lock", "recipe.yaml"]
    assert run.status() == "new"


def test_the_same_recipe_gives_the_same_run(run: RunDir):
    run.events.write_text("kept")
    again = RunDir.create(run.path.parent, "dpo", "model: a\n")
    assert again.path == run.path
    assert run.events.read_text() == "kept"


def test_a_run_belongs_to_one_recipe(run: RunDir):
    with pytest.raises(
        UserError, match=r"belongs to another recipe \(its text differs\); choose another --run"
    ):
        RunDir.create(run.path.parent, "dpo", "model: b\n")
    with pytest.raises(UserError, match=r"another recipe \(model: a / model: b\)"):
        RunDir.create(run.path.parent, "dpo", "model: b\n", lambda old, new: f"{old.strip()} / {new.strip()}")
    assert run.recipe.read_text() == "model: a\n"


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("")
    with pytest.raises(UserError, match=r"thesis: holds no run but chapter\.txt"):
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
    assert sorted(os.listdir(run.path)) == ["lock", "recipe.yaml"]


def at_once(act: Callable[[int], RunDir]) -> list[RunDir | UserError]:
    """What `act(0)` to `act(7)` gave, all begun at one moment."""
    gate = threading.Barrier(8)

    def one(number: int) -> RunDir | UserError:
        gate.wait()
        try:
            return act(number)
        except UserError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, range(8)))


def test_of_two_who_make_one_run_one_does_and_recipes_never_mix(tmp_path: Path):
    for name in ("a", "b", "c"):
        found = at_once(lambda number, name=name: RunDir.create(tmp_path, name, f"model: {number}\n"))
        (made,) = [run for run in found if isinstance(run, RunDir)]
        assert made.made_here
        assert made.recipe.read_text() == f"model: {found.index(made)}\n"
        assert sum("belongs to another recipe" in str(error) for error in found) == 7
    same = at_once(lambda number: RunDir.create(tmp_path, "same", "model: a\n"))
    assert sorted(run.made_here for run in same if isinstance(run, RunDir)) == [False] * 7 + [True]


def test_new_runs_never_share_a_folder(tmp_path: Path):
    found = at_once(lambda number: RunDir.create_new(tmp_path, "dpo", f"model: {number}\n"))
    assert sorted(run.name for run in found) == ["dpo", *(f"dpo-{number}" for number in range(2, 9))]
    assert [run.recipe.read_text() for run in found] == [f"model: {number}\n" for number in range(8)]


# --- taking runs away ----------------------------------------------------------------------------------


def begun_and_refused(run: RunDir) -> None:
    """What a worker leaves that found a mistake before the first step."""
    run.worker_log.write_text("error: no such model\n")
    run.control.mkdir()
    run.checkpoints.mkdir()
    with RunLock(run), EventWriter(run.events) as log:
        log.write("data", source="pairs.jsonl", rows=3)
        log.write("run.failed", error="no such model")


def test_a_run_that_was_made_here_and_did_not_begin_is_discarded(run: RunDir):
    begun_and_refused(run)
    assert run.discard()
    assert not run.path.exists()
    assert RunDir.create(run.path.parent, "dpo", "model: b\n").made_here


@pytest.mark.parametrize(
    "precious",
    [
        "checkpoints/step-000003/adapters.safetensors",
        "answers/one.jsonl",
        "votes.jsonl",
        "verdicts.jsonl",
        "pairs/step-000003.json",
        "evals/table.json",
        "notes.txt",
        "control/1.json",
    ],
)
def test_a_run_that_holds_anything_is_never_discarded(precious: str, run: RunDir):
    begun_and_refused(run)
    (run.path / precious).parent.mkdir(parents=True, exist_ok=True)
    (run.path / precious).write_text("kept")
    assert not run.discard()
    assert (run.path / precious).read_text() == "kept"
    assert run.exists()
    assert run.events.exists()


@pytest.mark.parametrize("line", ['{"v":1,"time":1,"type":"run.started"}', '{"v":1,"type":"run.sta', "?"])
def test_a_run_that_began_is_never_discarded(line: str, run: RunDir):
    begun_and_refused(run)
    with run.events.open("a") as log:
        log.write(f"{line}\n")
    assert not run.discard()
    assert run.exists()


def test_what_was_not_made_here_or_is_running_is_never_discarded(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(rundir, "_LOCK_PATIENCE", 0.05)
    assert not RunDir.create(run.path.parent, "dpo", "model: a\n").discard()
    assert not RunDir(run.path).discard()
    with holder(run):
        assert not run.discard()
        with pytest.raises(UserError, match="running"):
            run.delete()
    assert run.exists()
    run.delete()
    assert os.listdir(run.path.parent) == []


def test_a_lock_of_a_run_that_was_taken_away_is_not_held(run: RunDir):
    """One waits for the lock while its holder takes the folder away, and another makes the run anew."""

    def hold() -> int:
        with RunLock(run) as lock:
            return os.stat(lock.fd).st_ino

    with RunLock(run, signed=False):
        waiting = ThreadPoolExecutor(1).submit(hold)
        time.sleep(0.1)
        shutil.rmtree(run.path)
        made = RunDir.create(run.path.parent, "dpo", "model: b\n")
    assert waiting.result() == os.stat(made.lock).st_ino
    run.delete()
    with pytest.raises(UserError, match="there is no such run"):
        RunLock(run).acquire()


def test_a_killed_maker_leaves_nothing_under_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", killed)
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            RunDir.create(tmp_path, "dpo", "model: a\n")
    (left,) = tmp_path.iterdir()
    assert list_runs(tmp_path) == []
    os.utime(left, (0, 0))
    assert RunDir.create(tmp_path, "dpo", "model: b\n").made_here
    assert os.listdir(tmp_path) == ["dpo"]


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
    EventWriter(RunDir(tmp_path / "old").events).close()
    os.utime(RunDir(tmp_path / "old").events, (10, 10))
    assert [run.name for run in list_runs(tmp_path)] == ["old", "dpo-other", "dpo-2", "dpo"]
    assert [run.name for run in runs_of(tmp_path, "dpo", RunDir)] == ["dpo-2", "dpo"]
    assert find_run(tmp_path).name == "old"
    assert find_run(tmp_path, "dpo").name == "dpo"
    with pytest.raises(UserError, match=r"no run named 'dop'; the latest are old, dpo-other"):
        find_run(tmp_path, "dop")
    os.utime(RunDir.create(tmp_path / "series", "round-1", "model: m\n").recipe, (20, 20))
    with pytest.raises(UserError, match=r"series: holds several runs; name one of them: series/round-1$"):
        find_run(tmp_path, "series")
    assert find_run(tmp_path, "series/round-1").name == "round-1"
    # Which of a series is meant nobody can know, and an older run is not the latest.
    with pytest.raises(
        UserError, match=r"the latest run is series/round-1, of a series; name one of them: ser"
    ):
        find_run(tmp_path)
    expected = ["series/round-1", "old", "dpo-other", "dpo-2", "dpo"]
    assert [path_in(tmp_path, run) for run in runs_below(tmp_path)] == expected


def test_the_runs_of_a_series_are_named_where_there_are_no_others(tmp_path: Path):
    RunDir.create(tmp_path / "series", "round-1", "model: m\n")
    for name in (None, "series", "series/"):
        with pytest.raises(UserError, match=r"holds several runs; name one of them: series/round-1$"):
            find_run(tmp_path, name)
    for name in ("other", "series/round-2", "other/round-1"):
        with pytest.raises(UserError, match=rf"no run named '{name}'; the latest are series/round-1$"):
            find_run(tmp_path, name)


def test_no_runs_is_said(tmp_path: Path):
    assert list_runs(tmp_path / "missing") == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: is a file; name the folder of the runs"):
        list_runs(tmp_path / "file")
    with pytest.raises(UserError, match="no runs here"):
        find_run(tmp_path / "missing")


# --- leftovers -----------------------------------------------------------------------------------------


def test_cleaning_takes_the_leftovers_of_a_crash(run: RunDir):
    publish(run, 1)
    (run.checkpoints / ".step-000002.tmp-0123456789ab").mkdir()
    (run.path / ".recipe.yaml.tmp-0123456789ab").write_text("")
    run.clean()
    assert sorted(os.listdir(run.checkpoints)) == ["LATEST", "step-000001"]
    assert sorted(os.listdir(run.path)) == ["checkpoints", "lock", "recipe.yaml"]


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


def test_a_lock_goes_to_the_process_that_was_given_it(run: RunDir):
    with RunLock(run) as lock:
        command = [sys.executable, "-c", HOLDER, str(run.path)]
        environment = {**os.environ, rundir.LOCK_FD: str(lock.fd)}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env=environment, pass_fds=[lock.fd]
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
    with process:
        assert run.is_running()
        assert run.pid() == process.pid
        process.kill()
    assert not run.is_running()


def test_a_number_that_is_not_this_lock_is_not_taken_for_it(run: RunDir, monkeypatch: pytest.MonkeyPatch):
    with holder(run), run.recipe.open() as other:
        monkeypatch.setattr(rundir, "_LOCK_PATIENCE", 0.05)
        for number in ("", "x", "9999", str(other.fileno())):
            monkeypatch.setenv(rundir.LOCK_FD, number)
            with pytest.raises(UserError, match="running"):
                RunLock(run).acquire()


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
