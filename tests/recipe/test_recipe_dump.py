"""Dumping: a run's recipe.yaml says everything and loads back to an equal recipe."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from recipe_files import RECIPES, SMALLEST, write

from localdpo.core.errors import UserErrors
from localdpo.objective.registry import LOSSES
from localdpo.recipe.base import ONE_LINE
from localdpo.recipe.describe import all_keys
from localdpo.recipe.load import dump_recipe, load_recipe
from localdpo.recipe.loss import LossSection
from localdpo.recipe.schema import Recipe


def reload(recipe: Recipe, folder: Path) -> Recipe:
    return load_recipe(write(folder, dump_recipe(recipe)))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_dumped_recipe_loads_back_and_dumps_the_same(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(path)
    again = reload(recipe, tmp_path)
    assert again == recipe
    assert dump_recipe(again) == dump_recipe(recipe)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_dump_names_the_options_of_the_loss_and_no_others(loss: str, tmp_path: Path) -> None:
    needed = [f"loss.{name}=0.125" for name in LOSSES[loss].requires]
    recipe = load_recipe(write(tmp_path, SMALLEST), [f"loss={loss}", *needed])
    assert set(yaml.safe_load(dump_recipe(recipe))["loss"]) == {"type", *recipe.loss.options}
    assert set(recipe.loss.options) == {n for n, spec in LOSSES[loss].options.items() if spec.needs is None}
    assert reload(recipe, tmp_path) == recipe


def test_a_list_of_losses_is_dumped_with_its_weights_and_the_options_of_all(tmp_path: Path) -> None:
    for overrides in (
        ["loss=[robust, sft]"],
        ["loss.type=[discopop, sft]", "loss.weights=[1, 0.1]"],
        ["loss=[sft]"],
    ):
        recipe = load_recipe(write(tmp_path, SMALLEST), overrides)
        dumped = yaml.safe_load(dump_recipe(recipe))["loss"]
        assert (dumped["type"], dumped["weights"]) == (
            list(recipe.loss.type),
            list(recipe.loss.weights or ()),
        )
        assert set(dumped) == {"type", "weights", *recipe.loss.options}
        assert reload(recipe, tmp_path) == recipe


def test_the_sync_of_the_reference_is_dumped_where_there_is_one(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALLEST), ["loss=[orpo, hinge]", "loss.sync_every=7"])
    dumped = yaml.safe_load(dump_recipe(recipe))["loss"]
    assert (dumped["sync_every"], dumped["sync_alpha"]) == (7, 0.6)
    assert reload(recipe, tmp_path) == recipe


def test_a_reference_that_is_not_the_start_is_dumped(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALLEST), ["reference_adapter=base", "adapter=demo:sft"])
    assert (recipe.reference, reload(recipe, tmp_path)) == (None, recipe)
    with pytest.raises(UserErrors, match="reference_adapter=demo:sft: the simpo loss has no reference"):
        load_recipe(write(tmp_path, SMALLEST), ["loss=simpo", "reference_adapter=demo:sft"])


def test_the_dump_names_every_other_option(tmp_path: Path) -> None:
    values = yaml.safe_load(dump_recipe(load_recipe(write(tmp_path, SMALLEST))))
    for key in all_keys():
        section, _, name = key.rpartition(".")
        if section not in ("loss", "rounds") and key != "reference_adapter":
            assert name in (values[section] if section else values)


def test_a_recipe_with_a_validation_set_says_nothing_of_a_held_out_share(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, SMALLEST), ["data.valid=held-out.jsonl"])
    assert "valid_fraction" not in dump_recipe(recipe)
    assert reload(recipe, tmp_path) == recipe


@given(
    text=st.from_regex(ONE_LINE, fullmatch=True)
    | st.sampled_from(["no", "1e-5", "null", "~", "0x1f", "1:2", "'"])
)
def test_any_text_survives(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = Recipe.model_validate(
        {"model": text, "data": {"train": f" {text} "}, "lora": {"keys": [text, text]}}
    )
    assert reload(recipe, tmp_path_factory.mktemp("dump")) == recipe


@given(rate=st.floats(min_value=0, exclude_min=True, allow_infinity=False))
def test_any_number_survives_exactly(rate: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    recipe = Recipe.model_validate({"model": "m", "data": {"train": "t"}, "train": {"learning_rate": rate}})
    assert reload(recipe, tmp_path_factory.mktemp("dump")).train.learning_rate == rate


def test_warmup_keeps_its_kind(tmp_path: Path) -> None:
    for warmup, kind in (("0.5", float), ("5", int), ("0", int), ("0.0", float)):
        recipe = load_recipe(write(tmp_path, SMALLEST), [f"train.warmup={warmup}"])
        assert type(reload(recipe, tmp_path).train.warmup) is kind


def test_options_of_the_loss_are_what_preference_loss_takes() -> None:
    assert LossSection(type="robust", f_divergence="alpha").options == {
        "beta": 0.1,
        "label_smoothing": 0.0,
        "f_divergence": "alpha",
        "f_alpha": 0.5,
        "ld_alpha": 1.0,
        "use_weighting": False,
    }
    assert LossSection(type="simpo", simpo_gamma=1.0).options == {
        "beta": 0.1,
        "simpo_gamma": 1.0,
        "use_weighting": False,
    }
    assert LossSection(type="sft").options == {}
