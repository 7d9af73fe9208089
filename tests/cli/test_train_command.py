from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
from command import localdpo

from localdpo.cli.train import make_request
from localdpo.core.atomic import published_dir
from localdpo.core.errors import UserError
from localdpo.launch import begin, processes
from localdpo.launch.begin import TrainRequest, differing_keys, known_run
from localdpo.launch.explain import exit_code
from localdpo.out import note
from localdpo.records.events import read_events
from localdpo.records.rundir import RunDir, RunLock

pytestmark = pytest.mark.slow

FAKE = str(Path(__file__).parent / "fake_worker.py")
# The real command with the worker replaced, for signals: argv is MODE, then the command's own arguments.
DRIVER = f"""
import functools, sys
from localdpo.launch import processes as launch
from localdpo.cli.main import run
from localdpo.cli import train as command
command.start_worker = functools.partial(launch.start_worker, command=[sys.executable, {FAKE!r}, sys.argv[1]])
sys.argv = ["localdpo", *sys.argv[2:]]
run()
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, as current directory."""
    monkeypatch.chdir(tmp_path)
    Path("dpo.yaml").write_text("model: org/tiny\ndata: {train: pairs.jsonl}\n")
    return tmp_path


def driver(mode: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", DRIVER, mode, *arguments]


def train(mode: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in this process; its worker is one of its own."""
    start = functools.partial(processes.start_worker, command=[sys.executable, FAKE, mode])
    with mock.patch("localdpo.cli.train.start_worker", start):
        return localdpo("train", *arguments)


def request(*arguments: str, run: str | None = None, resume: bool = False) -> TrainRequest:
    recipe, *overrides = arguments or (None,)
    return make_request(recipe, overrides, run, Path("runs"), resume)


def open_run(asked: TrainRequest) -> RunDir:
    return begin.open_run(asked, note)


# --- what was asked for --------------------------------------------------------------------------------


def test_recipe_and_overrides_are_told_apart():
    assert request("dpo.yaml", "loss.beta=0.2") == TrainRequest(
        Path("dpo.yaml"), ("loss.beta=0.2",), None, Path("runs"), False
    )
    Path("a=b.yaml").write_text("")
    assert request("a=b.yaml").recipe == Path("a=b.yaml")
    assert request("loss.beta=0.2", run="x", resume=True).overrides == ("loss.beta=0.2",)


def test_without_a_recipe_the_run_must_be_named():
    for wrong in ({"resume": True}, {"run": "x"}, {}):
        with pytest.raises(UserError, match="no recipe"):
            request(**wrong)


# --- which run -----------------------------------------------------------------------------------------


def test_new_runs_are_numbered_and_keep_the_resolved_recipe():
    first = open_run(request("dpo.yaml"))
    assert first.path == Path("runs/dpo")
    assert "beta: 0.1" in first.recipe.read_text()
    assert open_run(request("dpo.yaml", "loss.beta=0.2")).path == Path("runs/dpo-2")
    assert "beta: 0.2" in RunDir("runs/dpo-2").recipe.read_text()


def test_resume_takes_the_latest_run_of_the_recipe():
    for age, name in enumerate(["dpo", "dpo-2", "other"]):
        run = open_run(request("dpo.yaml", run=name))
        os.utime(run.recipe, (age, age))
    assert open_run(request("dpo.yaml", resume=True)).name == "dpo-2"
    assert open_run(request(run="other", resume=True)).name == "other"
    assert open_run(request("dpo.yaml", run="dpo")).name == "dpo"


def test_there_must_be_something_to_resume():
    with pytest.raises(UserError, match=r"no run of dpo\.yaml to resume"):
        open_run(request("dpo.yaml", resume=True))
    open_run(request("dpo.yaml"))
    with pytest.raises(UserError, match="no run named 'dop'"):
        open_run(request("dpo.yaml", run="dop", resume=True))


def test_another_recipe_is_refused_with_the_keys_that_differ():
    open_run(request("dpo.yaml"))
    with pytest.raises(UserError, match=r"loss\.beta: 0\.1 there, 0\.2 here; train\.epochs: 1 there, 3 here"):
        open_run(request("dpo.yaml", "loss.beta=0.2", "train.epochs=3", run="dpo"))
    with pytest.raises(UserError, match="belongs to another recipe"):
        open_run(request("loss.beta=0.2", run="dpo", resume=True))
    assert open_run(request("dpo.yaml", "loss.beta=0.1", run="dpo")).name == "dpo"


def test_a_run_keeps_the_checkpoint_that_a_link_led_to(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoints = Path("runs/sft/checkpoints")
    checkpoints.mkdir(parents=True)
    with published_dir(checkpoints / "step-000120", 0) as folder:
        (folder / "adapters.safetensors").write_bytes(b"")
    link = f"adapter={checkpoints}/LATEST"
    run = open_run(request("dpo.yaml", link))
    assert f"adapter: {checkpoints}/step-000120\n" in run.recipe.read_text()
    with published_dir(checkpoints / "step-000240", 0) as folder:
        (folder / "adapters.safetensors").write_bytes(b"")
    for again in (
        request("dpo.yaml", link, run="dpo"),
        request("dpo.yaml", link, resume=True),
        request(run="dpo", resume=True),
    ):
        capsys.readouterr()
        assert open_run(again).path == run.path
        said = capsys.readouterr().err
        assert said == (
            ""
            if again.recipe is None
            else (
                f"adapter {checkpoints}/LATEST leads to {checkpoints}/step-000240 now; "
                f"this run keeps {checkpoints}/step-000120\n"
            )
        )
    assert "step-000240" in open_run(request("dpo.yaml", link)).recipe.read_text()


def test_changes_are_accepted_only_of_a_run_that_goes_on() -> None:
    with pytest.raises(UserError, match=r"--accept-changes resumes a run"):
        open_run(make_request("dpo.yaml", [], "dpo", Path("runs"), False, True))
    open_run(request("dpo.yaml"))
    assert open_run(make_request("dpo.yaml", [], "dpo", Path("runs"), False, True)).name == "dpo"


def test_a_running_run_is_refused():
    run = open_run(request("dpo.yaml"))
    with RunLock(run):
        for again in (request("dpo.yaml", run="dpo"), request("dpo.yaml", resume=True)):
            with pytest.raises(UserError, match=rf"running \(process {os.getpid()}\)"):
                open_run(again)
        assert open_run(request("dpo.yaml")).name == "dpo-2"
    assert known_run(request("dpo.yaml")) is None


def test_differences_are_few_words():
    assert differing_keys("a: {b: 1.0}\n", "a: {b: 1.0000001}\n") == "a.b: 1 there, 1.0000001 here"
    assert (
        differing_keys("a: 1\nb: 2\n", "a: 1\nc: 3\n") == "b: 2 there, not set here; c: not set there, 3 here"
    )
    many = differing_keys("{a: 1, b: 1, c: 1, d: 1, e: 1}", "{a: 2, b: 2, c: 2, d: 2, e: 2}")
    assert many.endswith("; and 2 more")
    assert differing_keys("a: 1\n", "a:  1\n") == ""
    assert differing_keys("a: no/such\n", "a: ./no/such\n") == "a: no/such there, ./no/such here"
    assert differing_keys(f"a: {os.path.relpath(__file__)}\n", f"a: {__file__}\n") == ""


def test_exit_codes():
    run = open_run(request("dpo.yaml"))
    assert [exit_code(code, run, by_keyboard=True) for code in (3, 130, -signal.SIGINT)] == [130] * 3
    assert [exit_code(code, run) for code in (3, 143, -signal.SIGTERM)] == [3] * 3
    assert [exit_code(code, run) for code in (0, 2, 1, -signal.SIGKILL)] == [0, 2, 1, 1]


def test_a_device_that_gave_up_has_an_exit_code_of_its_own():
    done = train("metal", "dpo.yaml", "--plain")
    assert done.returncode == 4
    assert "error: the worker was killed by SIGABRT after step 4 of 6" in done.stderr
    assert "hint: the GPU ran out of memory: lower train.micro_batch_size" in done.stderr


# --- the whole command, with a fake worker -------------------------------------------------------------


def test_a_run_from_start_to_end():
    done = train("finish", "dpo.yaml")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("run runs/dpo (worker ")
    assert "eval 3/6 loss 0.6 accuracy 0.75 margin 0.2 KL - seconds 0.01" in lines
    assert sum(line.startswith("step ") for line in lines) == 6
    assert lines[-3] == "finished in 1m 05s"
    assert lines[-2] == "adapter: runs/dpo/checkpoints/LATEST"
    assert lines[-1].startswith("try it: localdpo chat dpo")
    assert done.stderr == ""
    assert {json.loads(line)["v"] for line in Path("runs/dpo/events.jsonl").read_text().splitlines()} == {1}

    again = train("trace", "dpo.yaml", "--run", "dpo", "--json")
    assert again.returncode == 0
    assert again.stderr.splitlines()[0].startswith("runs/dpo is finished")
    record = json.loads(again.stdout)
    assert (record["name"], record["state"], record["step"]) == ("dpo", "finished", 6)
    assert "trace" not in Path("runs/dpo/worker.log").read_text()


def test_a_killed_run_says_how_to_go_on_and_goes_on():
    killed = train("sigkill", "dpo.yaml", "loss.beta=0.2")
    assert killed.returncode == 1
    lines = killed.stderr.splitlines()
    assert lines[0].startswith("error: the worker was killed by SIGKILL after step 4 of 6")
    assert lines[1] == "resume with: localdpo train --resume --run dpo"
    resumed = train("finish", *lines[1].removeprefix("resume with: localdpo train ").split())
    assert resumed.returncode == 0, resumed.stderr
    assert "run.resumed step 3/6" in resumed.stdout
    assert [e.step for e in read_events("runs/dpo/events.jsonl") if e.type == "step"] == [1, 2, 3, 4, 4, 5, 6]


def test_errors_of_the_worker_are_errors_of_the_command():
    done = train("user-error", "dpo.yaml")
    assert done.returncode == 2
    assert done.stderr == "error: org/tiny: no such model\nerror: data.train: no such file\n"
    # Nothing began, so no run is left behind and the name is free.
    assert not Path("runs/dpo").exists()


def test_a_worker_that_cannot_begin_is_shown():
    done = train("early", "dpo.yaml")
    assert done.returncode == 1
    assert done.stderr.startswith("error: the worker failed (exit code 1) before the run began")
    assert "ImportError" in done.stderr


def when(log: Path, notice: str, act: Callable[[], None]) -> None:
    """Wait until the log has this notice, then act."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if any(event.data.get("name") == notice for event in read_events(log)):
            act()
            return
        time.sleep(0.02)
    pytest.fail(f"no notice {notice}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 3)])
@pytest.mark.every(2)
def test_the_first_signal_lets_the_worker_save(number: int, code: int):
    log = Path("runs/dpo/events.jsonl")
    with subprocess.Popen(
        driver("stop", "train", "dpo.yaml"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        when(log, "waiting", lambda: command.send_signal(number))
        out, err = command.communicate(timeout=60)
    assert command.returncode == code
    assert "stopping: the worker saves at the end of this step" in out
    assert "run.stopped step 4/6 reason SIGINT" in out
    assert err.splitlines()[-1] == "resume with: localdpo train --resume --run dpo"
    assert RunDir("runs/dpo").status() == "stopped"


def test_the_second_ctrl_c_stops_at_once():
    log = Path("runs/dpo/events.jsonl")
    with subprocess.Popen(
        driver("stop-slow", "train", "dpo.yaml"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        when(log, "waiting", lambda: command.send_signal(signal.SIGINT))
        when(log, "saving", lambda: command.send_signal(signal.SIGINT))
        out, err = command.communicate(timeout=60)
    assert command.returncode == 130
    assert "stopping at once" in out
    assert err.startswith("stopped at once after step 4 of 6")


def test_a_killed_command_leaves_the_worker_alone():
    log = Path("runs/dpo/events.jsonl")
    with subprocess.Popen(
        driver("stop", "train", "dpo.yaml"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as command:
        when(log, "waiting", lambda: command.send_signal(signal.SIGKILL))
        command.communicate(timeout=60)
    run = RunDir("runs/dpo")
    assert run.status() == "running"
    refused = train("finish", "--resume", "--run", "dpo")
    assert refused.returncode == 2
    assert f"running (process {run.pid()})" in refused.stderr
    pid = run.pid()
    assert pid is not None
    os.kill(pid, signal.SIGINT)
    deadline = time.monotonic() + 15
    while run.is_running() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert run.status() == "stopped"
