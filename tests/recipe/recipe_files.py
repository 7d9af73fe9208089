"""What the recipe tests share: writing a recipe, and the problems that loading it meets."""

from __future__ import annotations

from pathlib import Path

import pytest

from localdpo.core.errors import UserError, UserErrors
from localdpo.recipe.load import load_recipe

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
SMALLEST = "model: demo:model\ndata:\n  train: pairs.jsonl\n"


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(folder: Path, text: str | bytes, *overrides: str) -> list[str]:
    """The lines that loading `text` gives, the folder cut from their front."""
    with pytest.raises((UserError, UserErrors)) as caught:
        load_recipe(write(folder, text), overrides)
    return [line.removeprefix(f"{folder}/") for line in caught.value.lines]
