"""Checkpoints: the adapter as mlx-lm reads it, and what it takes to go on exactly.

    checkpoints/step-000120/adapters.safetensors, adapter_config.json   for mlx-lm and for compare
                            optimizer.safetensors, state.json           for resume
                            reference.safetensors                       where the reference moves
                            manifest.json                               sizes and sha256, written last

A folder is published in one rename, and LATEST is moved to it after. Loading verifies the manifest
and falls back to the newest checkpoint that is whole.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_unflatten

from localdpo.core.atomic import published_dir, verify_manifest
from localdpo.core.rundir import RunDir
from localdpo.model import lora
from localdpo.model.arrays import load_arrays, named, set_random_key

OPTIMIZER_FILE = "optimizer.safetensors"
REFERENCE_FILE = "reference.safetensors"
STATE_FILE = "state.json"
VERSION = 1


@dataclass(frozen=True)
class TrainState:
    """Where a run is, beside its arrays.

    Attributes:
        step: optimizer steps taken.
        random: the two words of MLX's random key (dropout draws from it).
        seconds: training time so far.
        inputs: what the run is made of, see `inputs.to_json`.
    """

    step: int
    random: tuple[int, int]
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Found:
    """A checkpoint to go on from."""

    path: Path
    state: TrainState


def save(
    run: RunDir,
    model: nn.Module,
    optimizer: optim.Optimizer,
    state: TrainState,
    config: dict[str, Any],
    keep: int,
    *,
    reference: lora.Weights | None = None,
) -> Path:
    """Publish a checkpoint of the run, point LATEST at it, and remove all but the newest `keep`.

    `reference`: the adapter of a reference that moves; one that stays is the run's start.

    Raises:
        UserError: no space left; earlier checkpoints and LATEST stay as they were.
    """
    weights, moments = named(lora.adapter_weights(model)), named(optimizer.state)
    moved = None if reference is None else named(reference)
    mx.eval(weights, moments, moved)
    size = sum(array.nbytes for array in [*weights.values(), *moments.values(), *(moved or {}).values()])
    run.checkpoints.mkdir(exist_ok=True)
    final = run.checkpoint_path(state.step)
    with published_dir(final, size + 2**16) as folder:
        mx.save_safetensors(str(folder / lora.WEIGHTS_FILE), weights)
        mx.save_safetensors(str(folder / OPTIMIZER_FILE), moments)
        if moved is not None:
            mx.save_safetensors(str(folder / REFERENCE_FILE), moved)
        (folder / lora.CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")
        content = {"v": VERSION, "step": state.step, "random": state.random, "seconds": state.seconds}
        content |= {"metrics": state.metrics, "inputs": state.inputs}
        (folder / STATE_FILE).write_text(json.dumps(content, indent=2) + "\n")
    run.set_latest(final)
    for old in _expendable(checkpoints(run), final, keep):
        shutil.rmtree(old)
    return final


def _expendable(every: list[Path], final: Path, keep: int) -> list[Path]:
    """All but the newest `keep` up to `final`. A later one is damaged: the run resumed from before it."""
    end = every.index(final) + 1
    return every[: max(0, end - keep)] + every[end:]


def checkpoints(run: RunDir) -> list[Path]:
    """The run's checkpoint folders, oldest first."""
    found = [path for path in run.checkpoints.glob("step-*") if path.is_dir() and not path.is_symlink()]
    return sorted(found, key=lambda path: (len(path.name), path.name))


def newest_valid(run: RunDir) -> tuple[Found | None, list[str]]:
    """The newest checkpoint whose every byte is as it was written, None if there is none; and what is wrong
    with those that were passed over.
    """
    problems: list[str] = []
    for path in reversed(checkpoints(run)):
        found = verify_manifest(path)
        if not found:
            raw = json.loads((path / STATE_FILE).read_text())
            first, second = raw["random"]
            made_of = raw.get("inputs", [])
            state = TrainState(raw["step"], (first, second), raw["seconds"], raw["metrics"], made_of)
            return Found(path, state), problems
        problems += found
    return None, problems


def restore(found: Found, model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Put the checkpoint's adapter, optimizer state and random key back."""
    lora.load_weights(model, found.path)
    moments = load_arrays(found.path / OPTIMIZER_FILE)
    optimizer.state = tree_unflatten(list(moments.items()))
    set_random_key(found.state.random)


def moved_reference(folder: Path) -> lora.Weights:
    """The adapter weights of the reference in a checkpoint of a run whose reference moves.

    Raises:
        UserError: the file cannot be read.
    """
    return tree_unflatten(list(load_arrays(folder / REFERENCE_FILE).items()))
