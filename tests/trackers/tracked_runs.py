"""A run's log as a worker writes it, for tests of what trackers are shown of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from localdpo.records.events import EventWriter, effective, read_events
from localdpo.records.metrics import metrics_of
from localdpo.records.rundir import RunDir

RECIPE = {
    "model": "demo:model",
    "train": {"learning_rate": 5e-06, "seed": 0},
    "loss": {"type": "sigmoid"},
    "lora": {"keys": ["q_proj", "v_proj"], "dropout": None},
}
TEXT = 'two | lines\nof "text": ä'


def make_run(folder: Path, name: str = "dpo", report_to: tuple[str, ...] = ()) -> RunDir:
    """A run that has begun and was evaluated at step 0."""
    run = RunDir.create(folder, name, "model: demo:model\n")
    with EventWriter(run.events) as log:
        log.write("data", source="demo:pairs", rows=8)
        start(log, report_to)
        evaluate(log, 0, tied=True)
    return run


def start(log: EventWriter, report_to: tuple[str, ...] = ()) -> None:
    recipe = RECIPE | {"report_to": list(report_to)}
    log.write("run.started", recipe=recipe, total_steps=6, model="demo:model", loss="sigmoid")


def train(log: EventWriter, first: int, last: int) -> None:
    """Steps, and an evaluation after every third."""
    for step in range(first, last + 1):
        metrics = {
            "loss": 0.7 - step / 100,
            "rewards/chosen": step / 7,
            "rewards/margins": float("nan") if step == 2 else step / 3,
            "learning_rate": 5e-6 / step,
        }
        log.write("step", step, metrics=metrics)
        if step % 3 == 0:
            evaluate(log, step)


def evaluate(log: EventWriter, step: int, tied: bool = False) -> None:
    metrics: dict[str, Any] = {"loss": 0.69 - step / 90, "rewards/accuracies": step / 10, "kl": step / 1e4}
    log.write("eval", step, metrics=metrics | {"rewards/ties": float(tied)}, pairs=4, seconds=0.1)
    log.write("samples", step, samples=[{"prompt": "Why?", "reference": TEXT, "policy": f"answer {step}"}])


def stopped_run(folder: Path, report_to: tuple[str, ...] = ()) -> RunDir:
    """A run that was stopped after its fifth step; its newest checkpoint is of the third."""
    run = make_run(folder, report_to=report_to)
    with EventWriter(run.events) as log:
        train(log, 1, 5)
        log.write("run.stopped", 5, reason="SIGINT", saved=False)
    return run


def resume(run: RunDir, report_to: tuple[str, ...] = ()) -> None:
    """What a worker adds that goes on from the third step and finishes."""
    with EventWriter(run.events) as log:
        start(log, report_to)
        log.write("run.resumed", 3, checkpoint="checkpoints/step-000003")
        train(log, 4, 6)
        log.write("run.finished", 6, seconds=1.0)


def points_of(run: RunDir) -> dict[tuple[str, int], float]:
    """Every number that the log of a run holds, by its name in TRL and its step."""
    points: dict[tuple[str, int], float] = {}
    for event in effective(read_events(run.events)):
        if event.type in ("step", "eval") and event.step is not None:
            prefix = "eval_" if event.type == "eval" else ""
            for name, value in metrics_of(event).items():
                if value is not None:
                    points[prefix + name, event.step] = value
    return points


def as_charted(points: dict[tuple[str, int], float]) -> dict[tuple[str, int], float]:
    """The points under the names that transformers' callbacks for W&B, TensorBoard and Trackio give them."""
    return {
        (f"eval/{name[5:]}" if name.startswith("eval_") else f"train/{name}", step): value
        for (name, step), value in points.items()
    }


def samples_in(run: RunDir) -> list[tuple[int, str, str, str]]:
    return [
        (event.step or 0, sample["prompt"], sample["reference"], sample["policy"])
        for event in effective(read_events(run.events))
        if event.type == "samples"
        for sample in event.data["samples"]
    ]


def times_of(run: RunDir) -> dict[int, float]:
    """The time of the first event of each step."""
    times: dict[int, float] = {}
    for event in effective(read_events(run.events)):
        if event.type in ("step", "eval") and event.step is not None:
            times.setdefault(event.step, event.time)
    return times
