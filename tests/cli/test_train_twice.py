"""Two commands on one run: one trains, the other says so in one line, and nothing of the first is lost."""

from __future__ import annotations

import functools
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from command import localdpo

from localdpo.launch import processes
from localdpo.records.checkpoints import newest_checkpoint
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow

FAKE = str(Path(__file__).parent / "fake_worker.py")
# The real command with the worker replaced: argv is MODE, then the command's own arguments.
DRIVER = f"""
import functools, sys
from localdpo.launch import processes as launch
launch.start_worker = functools.partial(launch.start_worker, command=[sys.executable, {FAKE!r}, sys.argv[1]])
sys.argv = ["localdpo", "train", "dpo.yaml", *sys.argv[2:]]
from localdpo.cli.main import run
run()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with a recipe, as current directory."""
    monkeypatch.chdir(tmp_path)
    Path("dpo.yaml").write_text("model: org/tiny\ndata: {train: pairs.jsonl}\n")


def started(mode: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, mode, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(happens: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def ended(command: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code and the lines of stderr."""
    _, said = command.communicate(timeout=60)
    return command.returncode, said.splitlines()


def train(mode: str, *arguments: str) -> tuple[int, list[str]]:
    """The same of a command that runs in this process, its worker in one of its own."""
    start = functools.partial(processes.start_worker, command=[sys.executable, FAKE, mode])
    with mock.patch("localdpo.cli.train.start_worker", start):
        done = localdpo("train", "dpo.yaml", *arguments)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize("betas", [("0.1", "0.1"), ("0.1", "0.2")])
@pytest.mark.every(2)
def test_of_two_commands_on_one_new_name_one_trains(betas: tuple[str, str]):
    commands = [started("late", f"loss.beta={beta}", "--run", "x") for beta in betas]
    until(lambda: any(command.poll() is not None for command in commands))
    Path("go").touch()
    ends = [ended(command) for command in commands]
    run = RunDir("runs/x")
    assert sorted(code for code, _ in ends) == [0, 2]
    winner = next(place for place, (code, _) in enumerate(ends) if code == 0)
    (line,) = ends[1 - winner][1]
    assert line.startswith("error: runs/x: th")
    assert run.status() == "finished"
    assert newest_checkpoint(run) is not None
    assert f"beta: {betas[winner]}" in run.recipe.read_text()


@pytest.mark.long
def test_without_a_name_both_train():
    commands = [started("late") for _ in range(2)]
    until(lambda: Path("runs/dpo-2").exists())
    Path("go").touch()
    assert [ended(command) for command in commands] == [(0, []), (0, [])]
    assert [RunDir(path).status() for path in Path("runs").iterdir()] == ["finished", "finished"]


def test_a_command_beside_one_that_still_loads_leaves_its_run_alone():
    first, run = started("late", "--run", "x"), RunDir("runs/x")
    until(run.is_running)
    for again in ([], ["--resume"]):
        code, lines = train("finish", "--run", "x", *again)
        assert code == 2
        assert len(lines) == 1
        assert "runs/x: the run is running (process" in lines[0]
    Path("go").touch()
    assert ended(first) == (0, [])
    assert run.status() == "finished"


def test_a_run_whose_log_lost_its_beginning_is_kept_when_its_worker_refuses():
    assert train("stop-at-4", "--run", "x")[0] == 3
    run = RunDir("runs/x")
    lines = run.events.read_text().splitlines(keepends=True)
    run.events.write_text("".join(line for line in lines if "run.started" not in line))
    before = sorted(path for path in run.path.rglob("*"))
    code, said = train("user-error", "--run", "x", "--resume")
    assert (code, said[0]) == (2, "error: org/tiny: no such model")
    assert sorted(path for path in run.path.rglob("*")) == before
    assert train("finish", "--run", "x")[0] == 0


def test_a_run_with_something_of_worth_is_kept_when_its_worker_refuses():
    first, run = started("late-user-error", "--run", "x"), RunDir("runs/x")
    until(run.worker_log.exists)
    (run.path / "votes.jsonl").write_text("kept\n")
    Path("go").touch()
    assert ended(first)[0] == 2
    assert (run.path / "votes.jsonl").read_text() == "kept\n"
    assert run.exists()
