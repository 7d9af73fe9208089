"""What a recipe may say of losses on unpaired rows."""

from __future__ import annotations

from pathlib import Path

import pytest
from recipe_files import SMALLEST, problems, write

from localdpo.recipe.load import dump_recipe, load_recipe


@pytest.mark.parametrize("loss", ["kto", "apo_zero_unpaired"])
def test_weights_of_the_labels_are_read_and_written(tmp_path: Path, loss: str) -> None:
    recipe = load_recipe(write(tmp_path, SMALLEST), [f"loss={loss}", "loss.desirable_weight=1.25"])
    assert recipe.loss.spec.data == "unpaired"
    assert recipe.loss.options == {"beta": 0.1, "desirable_weight": 1.25, "undesirable_weight": 1.0}
    assert load_recipe(write(tmp_path, dump_recipe(recipe))) == recipe
    assert "desirable_weight" not in dump_recipe(load_recipe(write(tmp_path, SMALLEST)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["loss.desirable_weight=2"],
            "the sigmoid loss does not use it; remove it or choose one that does: kto,",
        ),
        (["loss=kto", "loss.label_smoothing=0.1"], "the kto loss does not use it"),
        (["loss=kto", "loss.ld_alpha=0.5"], "the kto loss does not use it"),
        (["loss=kto", "loss.undesirable_weight=0"], "expected a number > 0, got 0"),
        (
            ["loss=[kto, sft]"],
            "loss kto trains on unpaired rows, which no other loss can share; name it alone",
        ),
        (["loss=[kto, apo_zero_unpaired]"], "loss kto trains on unpaired rows"),
        (
            ["loss=kto", "train.batch_size=1"],
            "the kto loss compares with completions of other rows of the batch",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    (line,) = problems(tmp_path, SMALLEST, *overrides)
    assert line.startswith(f"{overrides[-1]}: {message}")


def test_only_the_baseline_needs_company_and_the_batch_may_be_cut(tmp_path: Path) -> None:
    for fine in (["loss=apo_zero_unpaired", "train.batch_size=1"], ["loss=kto", "train.micro_batch_size=1"]):
        load_recipe(write(tmp_path, SMALLEST), fine)
