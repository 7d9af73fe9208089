"""The shipped demo recipes in full: one aligns the model quietly, one is too hot and is told so."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "train"))

from test_demo_recipes import run, warnings

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("seed", [0, 1])
def test_dpo_ranks_the_held_out_pairs_and_raises_nothing(seed: int, tmp_path: Path) -> None:
    # Fewer evaluations than the recipe has, for time; they change nothing of the training.
    found = run(tmp_path, "dpo.yaml", f"train.seed={seed}", "eval.every=25", "eval.samples=0")
    evaluations, steps = found.metrics("eval"), found.metrics("step")
    assert abs(steps[0]["loss"] - math.log(2)) < 1e-6
    assert evaluations[0]["rewards/ties"] == 1.0
    assert evaluations[-1]["rewards/accuracies"] >= 0.75
    assert evaluations[-1]["loss"] < evaluations[0]["loss"] - 0.1
    assert not warnings(found)


def test_kto_tells_held_out_answers_apart_and_raises_nothing(tmp_path: Path) -> None:
    found = run(tmp_path, "kto.yaml", "train.max_steps=40", "eval.every=40", "eval.samples=0")
    first, last = found.metrics("eval")
    assert first["loss"] == pytest.approx(0.5, abs=1e-6)
    assert last["loss"] < first["loss"] - 0.05
    assert last["rewards/margins"] > 0.5
    # What makes the margin are undesirable answers going down, not desirable ones going with them.
    assert last["rewards/chosen"] > -0.1
    assert last["kl"] < 0.1
    assert not warnings(found)


def test_too_hot_keeps_its_margin_growing_and_is_told_so(tmp_path: Path) -> None:
    found = run(tmp_path, "dpo-too-hot.yaml", "train.max_steps=40", "eval.every=20")
    evaluations = found.metrics("eval")
    assert evaluations[-1]["rewards/margins"] > 1.0
    assert evaluations[-1]["kl"] > 0.5
    assert "displacement" in warnings(found)
