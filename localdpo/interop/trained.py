"""What a run trained, as an export takes it: the base as it is stored, and the adapter on it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn

from localdpo.core.errors import UserError
from localdpo.model import lora
from localdpo.model.load import Base, build_model, load_base, model_path
from localdpo.recipe.load import load_recipe
from localdpo.recipe.schema import Recipe
from localdpo.records.checkpoints import Note, checkpoint_folders, require_checkpoint, verified_adapter
from localdpo.records.rundir import RunDir
from localdpo.train.inputs import ADAPTER, MODEL, TOKENIZER, TRAIN, VALID, tell_changes


@dataclass(frozen=True)
class Trained:
    """A run's adapter at a checkpoint.

    Attributes:
        adapter: the checkpoint's folder; shape: of the adapter in it.
        base: the folder of the model that it was trained on.
    """

    run: RunDir
    recipe: Recipe
    adapter: Path
    shape: lora.LoraConfig
    base: Path

    def load(self) -> tuple[nn.Module, dict[str, Any]]:
        """The base with the adapter on it, and its config.json; quantised layers stay so, and no weight of
        the base is read before it is used.

        Raises UserError for a base that mlx-lm cannot load, and for an adapter that does not fit it.
        """
        model, config = build_model(self.recipe.model, trust_remote_code=self.recipe.trust_remote_code)
        lora.attach(model, self.shape, seed=0)
        lora.load_weights(model, self.adapter)
        return model, config

    def as_trained(self) -> Base:
        """Tokenizer and model with the adapter on it, in the number types that it was trained in here.

        Raises UserError for a base that mlx-lm cannot load, and for an adapter that does not fit it.
        """
        base = load_base(self.recipe.model, trust_remote_code=self.recipe.trust_remote_code)
        lora.attach(base.model, self.shape, seed=0)
        lora.load_weights(base.model, self.adapter)
        return base


def open_trained(run: RunDir, checkpoint: str | None, note: Note) -> Trained:
    """The run's adapter at its newest intact checkpoint, or at the one of that name or step.

    `note` gets a line for checkpoints that are skipped, and for inputs that changed since the run began.
    Raises UserError where there is none.
    """
    recipe = load_recipe(run.recipe)
    rows = VALID if recipe.data.valid is not None else TRAIN
    tell_changes(run, recipe, {MODEL, TOKENIZER, ADAPTER, rows}, note)
    adapter = require_checkpoint(run, note).path if checkpoint is None else _named(run, checkpoint)
    return Trained(run, recipe, adapter, lora.read_config(adapter), model_path(recipe.model))


def _named(run: RunDir, name: str) -> Path:
    wanted = run.checkpoint_path(int(name)).name if name.isdecimal() else name
    folders = {folder.name: folder for folder in checkpoint_folders(run.checkpoints)}
    if wanted not in folders:
        known = ", ".join(folders) or "none"
        raise UserError(f"--checkpoint {name}: expected one of the run's checkpoints; there are: {known}")
    return verified_adapter(folders[wanted], (lora.CONFIG_FILE, lora.WEIGHTS_FILE)).path
