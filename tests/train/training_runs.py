"""What the training tests share: sessions and whole runs in this process, and what a run left."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from localdpo.model.backend import Backend
from localdpo.recipe.load import load_recipe
from localdpo.records.events import Event, EventWriter, read_events
from localdpo.records.metrics import BY_NAME
from localdpo.records.rundir import RunDir
from localdpo.train.assemble import Session, assemble
from localdpo.train.control import StopRequest
from localdpo.train.loop import Loop, TrainingOutcome
from localdpo.train.step import TrainStep

EAGER = Backend("cpu", None, False, ())


def write_recipe(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(text)
    return folder / "recipe.yaml"


def session_of(folder: Path, text: str, *, backend: Backend = EAGER) -> Session:
    """The session of a recipe; uncompiled unless said otherwise (one trace costs more than a tiny step)."""
    return assemble(load_recipe(write_recipe(folder, text)), backend, lambda note: None)


@dataclass
class Run:
    """A run that was trained in this process."""

    run: RunDir
    session: Session
    loop: Loop
    outcome: TrainingOutcome

    @property
    def events(self) -> list[Event]:
        return read_events(self.run.events)

    def metrics(self, kind: str) -> list[dict[str, Any]]:
        return metrics_of(self.run, kind)


def train(folder: Path, text: str, *, backend: Backend = EAGER) -> Run:
    """Train a recipe in this process, in the run folder `folder`."""
    session = session_of(folder, text, backend=backend)
    run = RunDir(folder)
    with EventWriter(run.events) as log:
        loop = Loop(session, run, log, StopRequest())
        return Run(run, session, loop, loop.run())


def metrics_of(run: RunDir, kind: str) -> list[dict[str, Any]]:
    """The metrics of the events of a kind ("step" or "eval"), as they were written."""
    rows = [event.data["metrics"] for event in read_events(run.events) if event.type == kind]
    assert set().union(*rows) <= set(BY_NAME), "a metric is missing in METRICS"
    return rows


def step_of(session: Session, optimizer: Any, *, compiled: bool = False, clip: float = 1e9) -> TrainStep:
    """The step as `Loop` makes it."""
    return TrainStep(
        session.forward,
        session.objective,
        optimizer,
        max_grad_norm=clip,
        compiled=compiled,
        lanes=session.layout.lanes,
    )


def weights_of(session: Session) -> dict[str, np.ndarray]:
    """The adapter's arrays by name, copied."""
    return {name: np.array(value) for name, value in tree_flatten(session.base.model.trainable_parameters())}


def files_of(checkpoint: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint, adapter and optimizer, and its random key and step."""
    arrays = {}
    for name in ("adapters", "optimizer"):
        for key, value in mx.load(str(checkpoint / f"{name}.safetensors")).items():
            arrays[f"{name}/{key}"] = np.array(value)
    state = json.loads((checkpoint / "state.json").read_text())
    return {**arrays, "random": np.array(state["random"]), "step": np.array(state["step"])}


def assert_same_arrays(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    different = [name for name in expected if not np.array_equal(found[name], expected[name])]
    assert different == []
