"""The worker as a process: killed, stopped and resumed, it ends with the weights of an uninterrupted run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_folders import recipe_text, write_pairs
from training_runs import assert_same_arrays, files_of, write_recipe

from localdpo.records.checkpoints import newest_checkpoint
from localdpo.records.events import Event, effective, read_events
from localdpo.records.rundir import RunDir, RunLock
from localdpo.train import worker
from localdpo.train.control import StopRequest

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
# Where each life ends, in order, and its exit code. The first leaves no checkpoint.
LIVES = (
    ("step:1", "SIGKILL", -9),
    ("save:4", "SIGKILL", -9),
    ("step:5", "SIGTERM", 3),
    ("step:7", "SIGINT+SIGINT", -2),
)


class Workers:
    """The process of dying_worker.py."""

    def __init__(self) -> None:
        folders = [os.environ.get("PYTHONPATH", ""), str(HERE), str(HERE.parent)]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "dying_worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, folders)), "HF_HUB_OFFLINE": "1"},
        )

    def live(self, run: RunDir, cache: Path, moment: str | None = None, signals: str | None = None) -> int:
        """The exit status of one life of a worker, whose words are then in `said_by`."""
        job = {"run": str(run.path), "cache": str(cache), "stderr": str(said_by(run))}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({**job, "moment": moment, "signals": signals}) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


def said_by(run: RunDir) -> Path:
    return run.path.with_suffix(".stderr")


@dataclass
class Life:
    """What one life of a worker left."""

    code: int
    stderr: str
    events: list[Event]
    latest: str | None
    hidden: list[str]


@dataclass
class Story:
    """A run that died four times and finished, beside one that was left alone."""

    whole: RunDir
    run: RunDir
    lives: list[Life]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, sft_adapter: Path) -> Story:
    folder = tmp_path_factory.mktemp("lives")
    pairs = write_pairs(folder / "pairs.jsonl", 20)
    text = recipe_text(
        tiny_model,
        pairs,
        write_pairs(folder / "valid.jsonl", 4, start=50),
        adapter=str(sft_adapter),
        train={"epochs": 2, "micro_batch_size": 3, "schedule": "cosine", "warmup": 3, "seed": 11},
        lora={"dropout": 0.2},
        eval={"every": 3, "samples": 1, "max_tokens": 4, "temperature": 1.0, "kl_every": 2, "kl_samples": 2},
        save={"every": 2, "keep": 3},
    )
    whole, run = RunDir(folder / "whole"), RunDir(folder / "run")
    for each in (whole, run):
        write_recipe(each.path, text)
    workers, lives = Workers(), []
    with workers.process, workers.process.stdin:
        assert workers.live(whole, folder / "cache-whole") == 0, said_by(whole).read_text()
        for moment, signals in [*((moment, signals) for moment, signals, _ in LIVES), (None, None)]:
            code = workers.live(run, folder / "cache", moment, signals)
            latest = newest_checkpoint(run)
            hidden = [path.name for path in run.checkpoints.glob(".*")] if run.checkpoints.is_dir() else []
            lives.append(
                Life(
                    code,
                    said_by(run).read_text(),
                    read_events(run.events),
                    None if latest is None else latest.name,
                    hidden,
                )
            )
    return Story(whole, run, lives)


@pytest.mark.long
def test_every_life_ends_as_it_should(story: Story) -> None:
    assert [life.code for life in story.lives] == [*(code for _, _, code in LIVES), 0]
    assert [life.latest for life in story.lives] == [
        None,
        "step-000002",
        "step-000005",
        "step-000006",
        "step-000010",
    ]


def test_the_final_weights_optimizer_and_random_state_are_those_of_an_uninterrupted_run(story: Story) -> None:
    for step in (8, 10):
        assert_same_arrays(
            files_of(story.run.checkpoint_path(step)), files_of(story.whole.checkpoint_path(step))
        )


def test_metrics_and_samples_are_those_of_an_uninterrupted_run(story: Story) -> None:
    def measured(run: RunDir) -> list[tuple[str, int | None, object]]:
        timed = {"step_seconds", "tokens_per_second", "memory_gb", "peak_memory_gb", "cache_memory_gb"}
        found = []
        for event in effective(read_events(run.events)):
            if event.type in ("step", "eval") and event.step:
                kept = {k: v for k, v in event.data["metrics"].items() if k not in timed}
                found.append((event.type, event.step, kept))
            elif event.type == "samples" and event.step:
                found.append((event.type, event.step, event.data["samples"]))
        return found

    assert measured(story.run) == measured(story.whole)


def test_a_kill_inside_a_save_leaves_no_checkpoint_and_its_leftovers_go(story: Story) -> None:
    killed, after = story.lives[1], story.lives[2]
    assert any(name.startswith(".step-000004.tmp-") for name in killed.hidden)
    assert after.hidden == []


def test_a_stop_saves_the_step_and_says_so(story: Story) -> None:
    stopped = story.lives[2].events
    assert [(event.type, event.step) for event in stopped[-2:]] == [("checkpoint", 5), ("run.stopped", 5)]
    assert stopped[-1].data["reason"] == "SIGTERM"


def test_a_second_signal_ends_it_without_another_save(story: Story) -> None:
    assert story.lives[3].events[-1].type == "step"
    assert story.lives[3].events[-1].step == 7


def test_resumes_are_recorded_and_no_life_raises_a_traceback(story: Story) -> None:
    resumed = [event.step for event in story.lives[-1].events if event.type == "run.resumed"]
    assert resumed == [0, 2, 5, 6]
    assert all("Traceback" not in life.stderr for life in story.lives)
    assert story.run.status() == "finished"
    steps = [event.step for event in effective(story.lives[-1].events) if event.type == "step"]
    assert steps == list(range(1, 11))


@pytest.fixture
def in_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker leaves this process's signals alone, and has a cache of its own."""
    monkeypatch.setattr(StopRequest, "install", lambda self: None)
    monkeypatch.setenv("LOCALDPO_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("in_this_process")
def test_a_finished_run_that_is_started_again_changes_nothing(story: Story) -> None:
    before = files_of(story.run.latest)
    assert worker.main([str(story.run.path)]) == 0
    assert_same_arrays(files_of(story.run.latest), before)
    assert read_events(story.run.events)[-1].type == "run.finished"


@pytest.mark.usefixtures("in_this_process")
def test_a_second_worker_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "run")
    write_recipe(run.path, "model: none\n")
    with RunLock(run):
        assert worker.main([str(run.path)]) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert f"the run is running (process {os.getpid()})" in said
    assert not run.events.exists()


@pytest.mark.usefixtures("in_this_process")
def test_an_offline_hub_is_one_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "run")
    write_recipe(run.path, recipe_text(Path("no-such-org/no-such-model"), Path("pairs.jsonl")))
    assert worker.main([str(run.path)]) == 2
    said = capfd.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: model ")]
    assert len(errors) == 1
    assert "no-such-org/no-such-model: no such folder, and the hub cannot be reached" in errors[0]
    assert "Traceback" not in said
    assert read_events(run.events)[-1].type == "run.failed"
