"""What is known of where a run's base and its data come from: names on the hub, and licences."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import RepoCard, try_to_load_from_cache

from localdpo.core.names import is_demo
from localdpo.data.sources import hub_id
from localdpo.model.load import looks_local, read_json_object
from localdpo.recipe.schema import Recipe

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
