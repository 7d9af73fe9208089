"""Checkpoints: the adapter as mlx-lm reads it, and what it takes to resume exactly.

    checkpoints/step-000120/adapters.safetensors, adapter_config.json   for mlx-lm and for compare
                            optimizer.safetensors, state.json           for resume
                            reference.safetensors                       where the reference moves
                            manifest.json                               sizes and sha256, written last

A folder is published in one rename, and LATEST is moved to it after. Loading verifies the manifest
and falls back to the newest checkpoint that is whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_unflatten

from localdpo.core.atomic import published_dir, remove_dir
from localdpo.core.errors import UserError
from localdpo.model import lora
from localdpo.model.arrays import load_arrays, named, set_random_key
from localdpo.records.checkpoints import STATE_FILE, checkpoint_folders, newest_intact, set_latest
from localdpo.records.log import as_record
from localdpo.records.rundir import RunDir
from localdpo.records.wording import resume_command

OPTIMIZER_FILE = "optimizer.safetensors"
REFERENCE_FILE = "reference.safetensors"
VERSION = 1


@dataclass(frozen=True)
class TrainState:
    """Where a run is, beside its arrays.

    Attributes:
        step: optimizer steps taken.
        random: the two words of MLX's random key (dropout draws from it).
        seconds: training time so far.
        inputs: of the run, see `inputs.to_json`.
    """

    step: int
    random: tuple[int, int]
    seconds: float
    metrics: dict[str, float] = field(default_factory=dict)
    inputs: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class ResumePoint:
    """A valid checkpoint."""

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

    Raises UserError when there is no space left; earlier checkpoints and LATEST stay as they were.
    """
    weights, moments = named(model.trainable_parameters()), named(optimizer.state)
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
        content = json.dumps({"v": VERSION, **asdict(state)}, indent=2)
        (folder / STATE_FILE).write_text(content + "\n")
    set_latest(final)
    every = checkpoint_folders(run.checkpoints)
    end = every.index(final) + 1
    # A later one is damaged: the run resumed from before it.
    for old in every[: max(0, end - keep)] + every[end:]:
        remove_dir(old)
    return final


def newest_valid(run: RunDir) -> tuple[ResumePoint | None, list[str]]:
    """The newest valid checkpoint, None if there is none; and what is wrong with newer ones."""
    states: dict[Path, TrainState] = {}

    def has_state(folder: Path) -> list[str]:
        try:
            states[folder] = read_state(folder)
        except UserError as error:
            return [error.message]
        return []

    whole, problems = newest_intact(run.checkpoints, has_state)
    return (None if whole is None else ResumePoint(whole.path, states[whole.path])), problems


def require_some_whole(run: RunDir, *, accept: bool, note: Callable[[str], None]) -> None:
    """Refuse to restart at step 0 silently where every checkpoint of the run is damaged.

    `accept`: allow it, and report it to `note`. Raises UserError.
    """
    newest, problems = newest_valid(run)
    if newest is not None or not problems:
        return
    damaged = f"{run.path}: all checkpoints are damaged: {'; '.join(problems)}"
    if not accept:
        raise UserError(
            f"{damaged}; restore one from a copy, start over as another --run name, "
            f"or from step 0 in this run: {resume_command(run)} --accept-changes"
        )
    note(f"{damaged}; restarted at step 0, accepted with --accept-changes")


def read_state(folder: Path) -> TrainState:
    """The state of a run at a checkpoint. Raises UserError when its state.json is not what `save` writes."""
    file = folder / STATE_FILE
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(raw, dict) or raw.get("v") != VERSION:
            raise ValueError(f"expected an object with v {VERSION}")
        state = as_record(TrainState, raw)
        if min(state.step, *state.random) < 0 or max(state.random) >= 2**32:
            raise ValueError("expected step and both words of random as whole numbers of 0 or more")
    except (OSError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{file}: not the state of a run: {error}") from error
    return state


def restore(point: ResumePoint, model: nn.Module, optimizer: optim.Optimizer) -> None:
    """Restore the checkpoint's adapter, optimizer state and random key, and point LATEST at it."""
    lora.load_weights(model, point.path)
    moments = load_arrays(point.path / OPTIMIZER_FILE)
    optimizer.state = tree_unflatten(list(moments.items()))
    set_random_key(point.state.random)
    set_latest(point.path)


def moved_reference(folder: Path) -> lora.Weights:
    """The adapter weights of the reference in a checkpoint of a run whose reference moves.

    Raises UserError when the file cannot be read.
    """
    return tree_unflatten(list(load_arrays(folder / REFERENCE_FILE).items()))
