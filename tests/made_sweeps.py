"""A sweep of four runs, three of which have finished, from logs that were written by hand."""

from __future__ import annotations

from pathlib import Path

from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir
from localdpo.records.sweeps import SweepDir, SweepPlan, SweepRun

RECIPE = "model: org/tiny\ndata: {train: pairs.jsonl}\n"
# (KL, accuracy) at each evaluation; None: the run has failed.
PATHS: dict[str, list[tuple[float, float]] | None] = {
    "beta-0.05": [(0.0, 0.5), (0.02, 0.7), (0.04, 0.8)],
    "beta-0.1": [(0.0, 0.5), (0.01, 0.7), (0.02, 0.8)],
    "beta-0.3": [(0.0, 0.5), (0.01, 0.6), (0.03, 0.7)],
    "beta-9": None,
}


def make_sweep(folder: Path) -> SweepDir:
    values = tuple(name.removeprefix("beta-") for name in PATHS)
    runs = tuple(
        SweepRun(name, (value,), f"{RECIPE}loss: {{beta: {value}}}\n")
        for name, value in zip(PATHS, values, strict=True)
    )
    sweep = SweepDir.create(folder, "grid", SweepPlan({"loss.beta": values}, runs).to_text())
    assert isinstance(sweep, SweepDir)
    for planned in runs:
        run = RunDir.create(sweep.path, planned.name, planned.recipe)
        with EventWriter(run.events) as log:
            log.write("run.started", model="org/tiny", loss="sigmoid", total_steps=9, recipe={}, kind="pairs")
            path = PATHS[planned.name]
            for step, (kl, accuracy) in enumerate(path or ()):
                log.write("eval", step, metrics={"kl": kl, "rewards/accuracies": accuracy, "loss": 1.0 + kl})
            if path is None:
                log.write("run.failed", lines=["the loss is not finite"])
            else:
                log.write("run.finished", 9)
    return sweep
