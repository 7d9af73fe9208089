"""`localdpo schema`: what the reader takes is valid, and what it refuses mostly is not."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml
from recipe_files import RECIPES

from localdpo.recipe.describe import schema_text
from localdpo.recipe.load import dump_recipe, load_recipe

SCHEMA = json.loads(schema_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SMALLEST: dict[str, Any] = {"model": "m", "data": {"train": "d"}}


def is_valid(recipe: Any) -> bool:
    return bool(VALIDATOR.is_valid(recipe))


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_are_valid_as_they_are_and_with_every_default(path: Any) -> None:
    for text in (path.read_text(), dump_recipe(load_recipe(path))):
        # YAML 1.1 takes 1e-5 for text.
        recipe = yaml.safe_load(text)
        recipe["train"]["learning_rate"] = float(recipe["train"]["learning_rate"])
        VALIDATOR.validate(recipe)


@pytest.mark.parametrize(
    "change",
    [
        {"loss": "ipo"},
        {"loss": ["sigmoid", "sft"]},
        {"loss": {"type": "sigmoid", "beta": 0.2}},
        {"train": None},
        {"report_to": "none"},
        {"report_to": ["wandb"]},
        {"train": {"warmup": 0.1, "micro_batch_size": 2}},
        {"data": {"train": ["a", {"source": "b", "weight": 2}], "valid": ["c"]}},
    ],
)
def test_what_the_reader_takes(change: dict[str, Any]) -> None:
    assert is_valid(SMALLEST | change)


@pytest.mark.parametrize(
    "change",
    [
        {"modle": "m"},
        {"data": {}},
        {"train": {"batch_size": "8"}},
        {"train": {"batch_size": 0}},
        {"loss": {"bta": 1}},
        {"loss": 3},
        {"loss": "nope"},
        {"loss": ["sigmoid", "dpo"]},
        {"data": {"train": [{"weight": 2}]}},
    ],
)
def test_what_the_reader_refuses(change: dict[str, Any]) -> None:
    assert not is_valid(SMALLEST | change)
