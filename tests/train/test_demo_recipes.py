"""The first steps of the shipped demo recipes; all of them: tests/reliability/long_recipes.py."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from training_runs import Run, train

from localdpo.recipe.load import dump_recipe, load_recipe

RECIPES = Path(__file__).resolve().parents[2] / "recipes"

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]


def run(folder: Path, name: str, *overrides: str) -> Run:
    return train(folder, dump_recipe(load_recipe(RECIPES / name, overrides)))


def warnings(found: Run) -> set[str]:
    notices = [event.data for event in found.events if event.type == "notice"]
    return {notice["name"] for notice in notices if notice["level"] != "info"}


# Fewer rows in an evaluation and shorter answers than the recipes have: they change nothing of the training.
SHORT = ("data.limit=48", "eval.every=100", "eval.pairs=12", "eval.samples=0", "eval.max_tokens=8")


@pytest.mark.parametrize(
    ("name", "first_loss", "steps"), [("dpo.yaml", math.log(2), 6), ("kto.yaml", 0.5, 6)]
)
@pytest.mark.every(2)
@pytest.mark.long
def test_a_few_steps_tell_held_out_answers_apart_and_raise_nothing(
    name: str, first_loss: float, steps: int, tmp_path: Path
) -> None:
    found = run(tmp_path, name, f"train.max_steps={steps}", *SHORT)
    first, last = found.metrics("eval")
    assert first["loss"] == pytest.approx(first_loss, abs=1e-6)
    assert last["loss"] < first["loss"]
    assert first["rewards/margins"] == 0.0
    assert last["rewards/margins"] > 0.0
    assert last["kl"] < 0.1
    assert not warnings(found)
