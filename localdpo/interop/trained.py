"""What a run trained, as an export takes it: the base as it is stored, the adapter on it, and what is known
of where base and data come from (names on the hub, and licences).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn
import yaml
from huggingface_hub import RepoCard, try_to_load_from_cache

from localdpo.core.errors import UserError
from localdpo.core.names import is_demo
from localdpo.data.sources import hub_id
from localdpo.model import lora
from localdpo.model.load import Base, build_model, load_base, looks_local, model_path, read_json_object
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


# The demo is part of this package, and under its licence.
_OWN_LICENCE = "mit"
CARD = "README.md"


@dataclass(frozen=True)
class Origin:
    """A model or a data set.

    Attributes:
        name: as the recipe has it, or the last part of a path, which keeps folders of this machine private.
        hub: its id on the hub; None for what is not there.
        licence: as its card states it; None where it does not.
    """

    name: str
    hub: str | None = None
    licence: str | None = None


def base_of(recipe: Recipe, folder: Path) -> Origin:
    """The base model of a recipe, whose folder is `folder`."""
    name = recipe.model
    if is_demo(name):
        return Origin(name, licence=_OWN_LICENCE)
    card = _metadata(folder / CARD)
    hub = None if looks_local(name) or Path(name).expanduser().is_dir() else name
    return Origin(public(name), hub, _text(card.get("license")))


def original_of(recipe: Recipe, folder: Path) -> str | None:
    """The model in 16 bits that a quantised base was made of, as the card in its folder states it; a base
    that is not quantised is its own. None where the card does not say.
    """
    config = read_json_object(folder / "config.json")
    if "quantization" not in config and "quantization_config" not in config:
        return recipe.model
    return _text(_metadata(folder / CARD).get("base_model"))


def data_of(recipe: Recipe) -> list[Origin]:
    """The data sets that a recipe trains on, each once."""
    origins: dict[str, Origin] = {}
    for entry in recipe.data.train_sources:
        name, hub, licence = entry.source, None, None
        if is_demo(name):
            licence = _OWN_LICENCE
        elif hub := hub_id(name):
            path = try_to_load_from_cache(hub, CARD, repo_type="dataset")
            licence = _text(_metadata(Path(path)).get("license")) if isinstance(path, str) else None
        origins[name] = Origin(public(name), hub, licence)
    return list(origins.values())


def public(name: str) -> str:
    """A name without the folders of this machine: the last part of a path, and all of another name."""
    is_path = name.startswith(("/", "~", "./", "../")) or os.path.exists(name)
    return Path(name).name if is_path and not is_demo(name) else name


def _metadata(path: Path) -> dict[str, Any]:
    """The metadata of a card; empty where there is none that can be read."""
    try:
        text = path.read_text(encoding="utf-8")
        # Without this huggingface_hub logs that there is none.
        return dict(RepoCard(text).data.to_dict()) if text.startswith("---") else {}
    except (OSError, ValueError, yaml.YAMLError):
        return {}


def _text(value: Any) -> str | None:
    """The value, or the first of a list, if it is text."""
    first = value[0] if isinstance(value, list) and value else value
    return first if isinstance(first, str) else None
