"""Commands change when things happen, never what: weights, optimizer and random state stay those of a run
that was left alone."""

from __future__ import annotations

import json
import os
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_folders import recipe_text, write_pairs
from training_runs import assert_same_arrays, files_of, session_of, write_recipe

from localdpo.core.errors import UserError
from localdpo.records.checkpoints import newest_checkpoint
from localdpo.records.control import COMMANDS
from localdpo.records.events import Event, EventWriter, effective, read_events
from localdpo.records.rundir import RunDir
from localdpo.train import checkpoint, worker
from localdpo.train.assemble import Session
from localdpo.train.control import PAUSED_IN_WORK, Clock, StopRequest
from localdpo.train.loop import Loop, TrainingOutcome

pytestmark = pytest.mark.slow

STEPS = 4
Script = dict[str, list[str]]


@dataclass
class Scripted:
    """Puts commands into the control folder of a run when moments come; resumes what is paused.

    A moment is `EVENT:STEP` (just after that event was written), `rest` (in a pause), or `begin`. A command
    is a name; "stop!" is a stop without saving, and a name with "?" a damaged file.
    """

    run: RunDir
    script: Script
    sent: int = 0
    rests: int = 0

    def at(self, moment: str) -> None:
        for command in self.script.pop(moment, []):
            self.put(command)

    def put(self, command: str) -> None:
        self.run.control.mkdir(exist_ok=True)
        self.sent += 1
        content: dict[str, Any] = {"command": command.rstrip("!")}
        if command.endswith("!"):
            content["save"] = False
        (self.run.control / f"{self.sent:06d}.json").write_text(json.dumps(content))

    def rest(self, seconds: float) -> None:
        self.rests += 1
        if "rest" in self.script:
            self.at("rest")
        elif self.rests % 3 == 0:
            self.put("resume")


class ScriptedLog(EventWriter):
    """A log that tells a script which moment it is."""

    def __init__(self, scripted: Scripted) -> None:
        super().__init__(scripted.run.events)
        self.scripted = scripted

    def write(self, type: str, step: int | None = None, **fields: Any) -> Event:
        event = super().write(type, step, **fields)
        self.scripted.at(f"{type}:{fields.get('done') if type == 'reference' else step}")
        return event


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def shared_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALDPO_CACHE", str(cache))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> str:
    folder = tmp_path_factory.mktemp("pairs")
    return recipe_text(
        tiny_model,
        write_pairs(folder / "pairs.jsonl", 12),
        write_pairs(folder / "valid.jsonl", 3, start=50),
        train={"max_steps": STEPS, "batch_size": 3, "schedule": "cosine", "seed": 7, "reference": "ahead"},
        lora={"dropout": 0.2},
        eval={"every": 3, "samples": 1, "max_tokens": 3, "temperature": 1.0, "kl_every": 2, "kl_samples": 2},
        save={"every": 3, "keep": 9},
    )


def life(session: Session, run: RunDir, script: Script, stop: StopRequest | None = None) -> TrainingOutcome:
    """One worker's life in this process, with commands as the script says."""
    scripted, stop = Scripted(run, script), stop or StopRequest()
    stop.clock.rest = scripted.rest  # type: ignore[method-assign]
    run.path.mkdir(exist_ok=True)
    with ScriptedLog(scripted) as log:
        scripted.at("begin")
        return Loop(session, run, log, stop).run()


def fresh(folder: Path, recipe: str) -> Session:
    return session_of(folder, recipe)


def whole_run(folder: Path, recipe: str, script: Script) -> RunDir:
    """A run under the script, resumed until it has taken all steps."""
    run = RunDir(folder)
    for _ in range(20):
        if life(fresh(folder, recipe), run, script).stopped_by is None:
            return run
    raise AssertionError("it never ended")


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, recipe: str, cache: Path
) -> tuple[dict[str, np.ndarray], list[Any]]:
    """What an uninterrupted run leaves: its last checkpoint and its metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCALDPO_CACHE", str(cache))
        run = whole_run(tmp_path_factory.mktemp("alone"), recipe, {})
    return files_of(run.latest), step_losses(run)


def step_losses(run: RunDir) -> list[Any]:
    events = effective(read_events(run.events))
    return [(event.step, event.data["metrics"]["loss"]) for event in events if event.type == "step"]


def answers(run: RunDir) -> list[tuple[str, bool, str]]:
    events = [event.data for event in read_events(run.events) if event.type == "control"]
    return [(data["command"], data["ok"], data["message"]) for data in events]


def random_script(seed: int) -> Script:
    """Up to eight commands at random moments, stops with and without saving among them."""
    rng = random.Random(seed)
    moments = ["begin", "rest", *(f"step:{n}" for n in range(1, STEPS + 1))]
    moments += [f"eval:{n}" for n in (0, 3)] + ["checkpoint:3", "samples:0", "run.paused:1", "control:None"]
    script: Script = {}
    for _ in range(rng.randint(1, 8)):
        command = rng.choice([*COMMANDS, "stop!", "dance", "pause", "evaluate", "checkpoint"])
        script.setdefault(rng.choice(moments), []).append(command)
    return script


@pytest.mark.parametrize("seed", range(int(os.environ.get("LOCALDPO_TEST_TRIALS", 2))))
def test_random_commands_leave_the_weights_of_an_undisturbed_run(
    seed: int, tmp_path: Path, recipe: str, alone: tuple[dict[str, np.ndarray], list[Any]]
) -> None:
    script = random_script(seed)
    run = whole_run(tmp_path / "run", recipe, dict(script))
    assert_same_arrays(files_of(run.latest), alone[0])
    assert step_losses(run) == alone[1], script
    asked = len(answers(run))
    assert os.listdir(run.control) == [] if run.control.exists() else asked == 0


def test_a_pause_holds_steps_back_and_commands_work_in_it(tmp_path: Path, recipe: str) -> None:
    script = {
        "step:2": ["pause"],
        "rest": ["checkpoint", "evaluate", "evaluate", "pause", "resume", "resume"],
    }
    run = RunDir(tmp_path / "run")
    assert life(fresh(run.path, recipe), run, script).stopped_by is None
    kinds = [(event.type, event.step) for event in read_events(run.events) if event.type != "notice"]
    start = kinds.index(("run.paused", 2))
    shown = [kind for kind in kinds[start : kinds.index(("step", 3))] if kind[0] not in ("pairs", "phase")]
    assert shown == [
        ("run.paused", 2),
        ("control", None),
        ("checkpoint", 2),
        ("control", None),
        ("control", None),
        ("eval", 2),
        ("samples", 2),
        ("control", None),
        ("control", None),
        ("run.continued", 2),
        ("control", None),
        ("control", None),
    ]
    assert answers(run) == [
        ("pause", True, "paused after step 2"),
        ("checkpoint", True, "saved as checkpoints/step-000002"),
        ("evaluate", True, "evaluating after step 2"),
        ("evaluate", False, "step 2 is evaluated already"),
        ("pause", True, "the run is already paused"),
        ("resume", True, "resumed after step 2"),
        ("resume", True, "the run is not paused"),
    ]


def test_a_stop_saves_or_not_and_refuses_what_comes_after_it(tmp_path: Path, recipe: str) -> None:
    run = RunDir(tmp_path / "saved")
    outcome = life(fresh(run.path, recipe), run, {"step:1": ["stop", "checkpoint"]})
    assert outcome.stopped_by == "stop"
    assert newest_checkpoint(run) == run.checkpoint_path(1)
    assert answers(run) == [
        ("stop", True, "saving and stopping"),
        ("checkpoint", False, "the run is stopping"),
    ]
    other = RunDir(tmp_path / "unsaved")
    assert life(fresh(other.path, recipe), other, {"step:2": ["stop!"]}).stopped_by == "stop"
    assert newest_checkpoint(other) is None


def test_what_comes_while_the_rest_is_refused_is_refused_too(tmp_path: Path, recipe: str) -> None:
    run = RunDir(tmp_path / "run")
    script = {f"step:{STEPS}": ["checkpoint"], "control:None": ["pause", "evaluate"]}
    assert life(fresh(run.path, recipe), run, script).stopped_by is None
    commands = ("checkpoint", "pause", "evaluate")
    assert answers(run) == [(command, False, "the run has ended") for command in commands]
    assert os.listdir(run.control) == []


@pytest.mark.usefixtures("alone")  # which has scored the reference
def test_what_waits_for_the_end_of_an_evaluation_is_done_then(tmp_path: Path, recipe: str) -> None:
    """A checkpoint in the middle of an evaluation would lack its metrics; a pause is obeyed there."""
    run = RunDir(tmp_path / "run")
    session = fresh(run.path, recipe)
    sums = session.objective.sums
    calls: list[int] = []

    def scripted_sums(*arguments: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 1:
            (run.control).mkdir(exist_ok=True)
            (run.control / "1.json").write_text('{"command": "checkpoint"}')
            (run.control / "2.json").write_text('{"command": "pause"}')
        return sums(*arguments)

    session.objective.sums = scripted_sums  # type: ignore[method-assign]
    life(session, run, {})
    kinds = [event.type for event in read_events(run.events)]
    assert kinds.index("run.paused") < kinds.index("run.continued") < kinds.index("eval")
    assert answers(run) == [
        ("pause", True, "paused after step 0"),
        ("resume", True, "resumed after step 0"),
        ("checkpoint", False, "no step is taken yet, so there is nothing to save"),
    ]


@pytest.mark.usefixtures("alone")
def test_what_a_pause_in_the_middle_of_an_evaluation_holds_up_is_refused(tmp_path: Path, recipe: str) -> None:
    """Whoever asked would wait as long as the pause, with no word of why."""
    run = RunDir(tmp_path / "run")
    session = fresh(run.path, recipe)
    sums = session.objective.sums

    def paused(*arguments: Any) -> Any:
        session.objective.sums = sums  # type: ignore[method-assign]
        (run.control).mkdir(exist_ok=True)
        (run.control / "1.json").write_text('{"command": "pause"}')
        return sums(*arguments)

    session.objective.sums = paused  # type: ignore[method-assign]
    life(session, run, {"rest": ["checkpoint", "evaluate", "resume", "evaluate"], "step:1": ["checkpoint"]})
    assert answers(run)[:5] == [
        ("pause", True, "paused after step 0"),
        ("checkpoint", False, PAUSED_IN_WORK),
        ("evaluate", False, PAUSED_IN_WORK),
        ("resume", True, "resumed after step 0"),
        ("evaluate", False, "step 0 is evaluated already"),
    ]
    assert answers(run)[5] == ("checkpoint", True, "saved as checkpoints/step-000001")


def test_the_reference_pass_can_be_paused_and_stopped(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALDPO_CACHE", str(tmp_path / "cache"))
    run = RunDir(tmp_path / "run")
    session = fresh(run.path, recipe)
    passes = [session.train_scores, session.valid_scores]
    assert all(scores is not None for scores in passes)
    outcome = life(session, run, {"reference:3": ["pause", "evaluate"], "rest": ["resume", "stop"]})
    assert outcome.stopped_by == "stop"
    events = read_events(run.events)
    kinds = [event.type for event in events]
    assert kinds.index("run.paused") < kinds.index("run.continued")
    assert "eval" not in kinds
    assert answers(run)[0] == ("pause", True, "paused after step 0")
    assert ("evaluate", False, "the run has ended") in answers(run)
    (first, *_) = [event for event in events if event.type == "reference"]
    assert first.data["later"] == 3


def test_a_stop_in_the_reference_pass_is_obeyed_after_the_batch(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCALDPO_CACHE", str(tmp_path / "cache"))
    run = RunDir(tmp_path / "run")
    outcome = life(fresh(run.path, recipe), run, {"reference:3": ["stop"]})
    assert outcome.stopped_by == "stop"
    kinds = [event.type for event in read_events(run.events)]
    assert kinds.count("reference") == 1
    assert {"eval", "phase"}.isdisjoint(kinds)


def test_what_waits_can_be_cancelled(tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the reference pass a checkpoint waits; what comes in one look with the cancelling is void, too."""
    monkeypatch.setenv("LOCALDPO_CACHE", str(tmp_path / "cache"))
    run = RunDir(tmp_path / "run")
    script = {
        "reference:3": ["checkpoint"],
        "reference:6": ["cancel"],
        "step:1": ["checkpoint", "pause", "cancel", "checkpoint", "stop!"],
    }
    life(fresh(run.path, recipe), run, script)
    assert answers(run) == [
        ("checkpoint", False, "cancelled"),
        ("cancel", True, "what was waiting is cancelled"),
        ("checkpoint", False, "cancelled"),
        ("pause", False, "cancelled"),
        ("cancel", True, "what was waiting is cancelled"),
        ("checkpoint", True, "saved as checkpoints/step-000001"),
        ("stop", True, "stopping without saving"),
    ]


def test_a_signal_ends_a_pause(tmp_path: Path, recipe: str) -> None:
    run, stop = RunDir(tmp_path / "run"), StopRequest()
    session = fresh(run.path, recipe)
    scripted = Scripted(run, {"step:2": ["pause"]})

    def rest(seconds: float) -> None:
        stop.reason = "SIGINT"

    stop.clock.rest = rest  # type: ignore[method-assign]
    run.path.mkdir(exist_ok=True)
    with ScriptedLog(scripted) as log:
        assert Loop(session, run, log, stop).run().stopped_by == "SIGINT"
    assert newest_checkpoint(run) == run.checkpoint_path(2)


def test_damaged_commands_are_refused(tmp_path: Path, recipe: str) -> None:
    run = RunDir(tmp_path / "run")
    life(fresh(run.path, recipe), run, {"begin": ["dance"], "step:2": ["pause?"]})
    assert answers(run) == [
        (None, False, f"expected a command, one of {', '.join(COMMANDS)}"),
        (None, False, f"expected a command, one of {', '.join(COMMANDS)}"),
    ]


def test_a_full_disk_refuses_the_command_and_training_goes_on(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = checkpoint.save

    def full(run: RunDir, model: Any, optimizer: Any, state: Any, *rest: Any, **more: Any) -> Path:
        if state.step == 2:
            raise UserError("no space left")
        return save(run, model, optimizer, state, *rest, **more)

    monkeypatch.setattr(checkpoint, "save", full)
    run = RunDir(tmp_path / "run")
    assert life(fresh(run.path, recipe), run, {"step:2": ["checkpoint"]}).stopped_by is None
    assert answers(run) == [("checkpoint", False, "no space left")]


def test_nothing_to_evaluate_is_said(tmp_path: Path, tiny_model: Path) -> None:
    pairs = write_pairs(tmp_path / "one.jsonl", 1)
    text = recipe_text(tiny_model, pairs, train={"epochs": 2, "batch_size": 1})
    run = RunDir(tmp_path / "run")
    life(fresh(run.path, text), run, {"step:1": ["evaluate"]})
    assert [answer[1] for answer in answers(run)] == [False]
    assert "nothing to evaluate" in answers(run)[0][2]


def test_a_pause_is_in_no_step_and_no_evaluation(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock by hand: a hundredth of a second passes at every look, 100 s in every rest."""
    hands = [0.0]

    def look() -> float:
        hands[0] += 0.01
        return hands[0]

    def sleep(seconds: float) -> None:
        hands[0] += 100.0

    run, stop = RunDir(tmp_path / "run"), StopRequest()
    session = fresh(run.path, recipe)
    stop.clock = Clock(look, lambda: hands[0])
    monkeypatch.setattr(time, "sleep", sleep)
    scripted, rest = (
        Scripted(run, {"step:1": ["pause"], "rest": ["evaluate"], "step:3": ["pause"]}),
        Clock.rest,
    )

    def rests(seconds: float) -> None:
        scripted.rest(seconds)
        rest(stop.clock, seconds)

    stop.clock.rest = rests  # type: ignore[method-assign]
    with ScriptedLog(scripted) as log:
        outcome = Loop(session, run, log, stop).run()
    assert hands[0] > 300
    assert outcome.seconds < 1
    events = read_events(run.events)
    assert all(event.data["metrics"]["step_seconds"] < 1 for event in events if event.type == "step")
    assert [event.data["seconds"] < 1 for event in events if event.type == "eval"] == [True] * 4
    assert sum(event.type == "run.paused" for event in events) == 2


def test_commands_left_from_before_are_void(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StopRequest, "install", lambda self: None)
    run = RunDir(tmp_path / "run")
    write_recipe(run.path, recipe)
    run.control.mkdir()
    (run.control / "1.json").write_text('{"command": "stop"}')
    assert worker.main([str(run.path)]) == 0
    assert answers(run) == [("stop", False, "this came before the worker began; give the command again")]
    started = next(event for event in read_events(run.events) if event.type == "run.started")
    assert started.data["memory_limit_gb"] > 0.1
