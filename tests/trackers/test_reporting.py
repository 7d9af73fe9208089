"""A tracker that hangs, raises or dies touches no run; what it missed is shown later, once."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from command import localdpo
from tracked_runs import as_charted, points_of, resume, samples_in, stopped_run

from localdpo.launch import reporting
from localdpo.launch.processes import Job, start_worker
from localdpo.launch.reporting import PATIENCE_SWITCH, Reporters
from localdpo.records.events import Event, EventWriter, read_events
from localdpo.records.rundir import RunDir, RunLock
from localdpo.records.wording import format_event

HERE = Path(__file__).parent
SECRET = "hf_0123456789abcdef"


@pytest.fixture(autouse=True)
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the packages of trackers, and an empty current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(HERE / "packages")
    monkeypatch.setenv("PYTHONPATH", f"{HERE / 'packages'}:{HERE}:{HERE.parents[1]}")
    monkeypatch.delenv("HF_TOKEN", raising=False)


def notices_of(run: RunDir) -> list[Event]:
    return [event for event in read_events(run.events) if event.type == "notice"]


@pytest.mark.slow
def test_trackers_that_hang_raise_and_die_touch_no_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(PATIENCE_SWITCH, "1")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    run = RunDir.create("runs", "dpo", "model: demo:model\n")
    worker = start_worker(run, command=[sys.executable, str(HERE / "tracked_worker.py")])
    assert worker.wait() == 0
    assert run.status() == "finished"
    assert sorted(step for name, step in points_of(run) if name == "loss") == list(range(1, 7))
    said = {str(event.data["message"]).split()[0]: event for event in notices_of(run)}
    hung, raised, killed = (said[name] for name in ("no", "trackio", "mlflow"))
    assert hung.data["message"] == (
        "no answer within 1 s (LOCALDPO_TRACKER_SECONDS); wandb failed (exit code 1) "
        "(more in runs/dpo/trackers/wandb.log); the run is not affected"
    )
    assert "RuntimeError: no Space for *** (more in runs/dpo/trackers/trackio.log)" in raised.data["message"]
    assert "mlflow was killed by SIGKILL" in killed.data["message"]
    assert all(str(event.data["message"]).endswith("; the run is not affected") for event in said.values())
    line = format_event(killed, 6)
    assert line is not None
    assert line.endswith("when the run has ended: localdpo runs sync dpo --to mlflow")
    for path in run.path.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("stop", [False, True])
def test_a_tracker_that_is_not_done_is_ended(stop: bool, monkeypatch: pytest.MonkeyPatch):
    """When its time is over, or at once when the command is stopped."""
    monkeypatch.setenv(PATIENCE_SWITCH, "30" if stop else "0.2")
    stuck = Job([sys.executable, "-S", "-c", "import time; time.sleep(60)"], Path("log"), "wandb", "")
    monkeypatch.setattr(reporting, "start_reporter", lambda run, name, again: stuck)
    run = RunDir.create("runs", "dpo", "model: demo:model\n")
    reporters = Reporters(run)
    with EventWriter(run.events) as log:
        log.write("run.started", recipe={"report_to": ["wandb"]})
        reporters.look()
        assert reporters.look_again is not None
        log.write("run.resumed", 3)
        log.write("eval", 3, metrics={})
    reporters.look()
    assert reporters.look_again is None
    began = time.monotonic()
    reporters.finish(lambda seconds: stop or bool(time.sleep(seconds)))
    assert time.monotonic() - began < 10
    assert not stuck.is_running
    assert [event.data["message"] for event in notices_of(run)] == ["wandb was ended before it was done"]


def test_a_recipe_without_trackers_starts_nothing():
    run = RunDir.create("runs", "dpo", "model: demo:model\n")
    reporters = Reporters(run)
    with EventWriter(run.events) as log:
        log.write("run.started", recipe={"report_to": []})
        reporters.look()
        assert reporters.look_again is None


@pytest.mark.slow
def test_a_run_is_synced_once():
    run = stopped_run(Path("runs"), report_to=("trackio",))
    resume(run, report_to=("trackio",))
    for sent in (7, 0):
        result = localdpo("runs", "sync")
        assert (result.returncode, result.stderr) == (0, "")
        assert result.stdout == f"reported to trackio: {sent} steps sent; trackio show --project localdpo\n"
    rows = json.loads(Path("localdpo.json").read_text())
    kept = {(name, step): value for step, row in enumerate(rows) for name, value in row.items()}
    samples = [(step, *row["samples"][0].values()) for step, row in enumerate(rows) if "samples" in row]
    assert samples == samples_in(run)
    assert {key: value for key, value in kept.items() if key[0] != "samples"} == as_charted(points_of(run))


@pytest.mark.slow
def test_a_tracker_that_fails_is_an_error_of_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    stopped_run(Path("runs"))
    result = localdpo("runs", "sync", "dpo", "--to", "trackio")
    assert result.returncode == 2
    assert result.stderr == (
        "error: trackio failed (exit code 1); RuntimeError: no Space for *** "
        "(more in runs/dpo/trackers/trackio.log); run the same command again\n"
    )


@pytest.mark.slow
def test_a_tracker_that_ends_the_process_has_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "trackio.py").write_text("import os\nos._exit(0)\n")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{HERE.parents[1]}")
    stopped_run(Path("runs"))
    result = localdpo("runs", "sync", "dpo", "--to", "trackio")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: trackio ended before it was done (more in runs/dpo/trackers/trackio.log); "
        "run the same command again\n"
    )


def test_what_cannot_be_synced():
    run = stopped_run(Path("runs"))
    assert localdpo("runs", "sync").stderr == (
        "error: runs/dpo: its recipe names no tracker; name one with --to\n"
    )
    assert localdpo("runs", "sync", "--to", "wand").stderr == (
        "error: --to wand: expected one of wandb, tensorboard, trackio, mlflow\n"
    )
    assert localdpo("runs", "sync", "--to", "tensorboard").stderr == (
        "error: --to: tensorboard needs the package tensorboard: pip install 'localdpo[tensorboard]'\n"
    )
    assert localdpo("runs", "--json", "sync").returncode == 2
    with RunLock(run):
        assert localdpo("runs", "sync", "--to", "trackio").stderr == (
            "error: runs/dpo: this run is training; show it to trackers when it has ended\n"
        )
