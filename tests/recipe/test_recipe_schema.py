"""The schema itself: complete, immutable, described; the options table follows from it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError
from recipe_files import RECIPES

from localdpo.objective.registry import LOSS_SYNONYMS, LOSSES
from localdpo.recipe.describe import all_keys, expected, field_at, names_elsewhere, options_table, unknown_key
from localdpo.recipe.load import load_recipe
from localdpo.recipe.loss import LossSection
from localdpo.recipe.schema import Recipe


def test_every_loss_option_of_the_registry_is_a_key_and_no_others_are() -> None:
    keys = {key.removeprefix("loss.") for key in all_keys() if key.startswith("loss.")}
    assert keys == {"type", "weights", "sync_every", "sync_alpha"} | {
        name for spec in LOSSES.values() for name in spec.options
    }


@pytest.mark.parametrize("loss", LOSSES)
def test_defaults_and_bounds_of_loss_options_are_the_registrys(loss: str) -> None:
    spec = LOSSES[loss]
    needed = {name: 0.125 for name in spec.requires}
    section = LossSection.model_validate({"type": loss, **needed})
    for name, option in spec.options.items():
        assert getattr(section, name) == needed.get(name, option.default)
        for value in (option.low, option.high, -1.0, 0.0, 0.3, 2.0):
            context = {} if option.needs is None else {option.needs: option.needs_value}
            values = {"type": loss, **needed, **context, name: value}
            if value is None or option.is_switch or option.choices:
                continue
            if spec.option_problem(name, value):
                with pytest.raises(ValidationError):
                    LossSection.model_validate(values)
            else:
                assert getattr(LossSection.model_validate(values), name) == value


def test_a_recipe_cannot_be_changed() -> None:
    recipe = load_recipe(RECIPES[0])
    with pytest.raises(ValidationError, match="frozen"):
        recipe.train.batch_size = 4  # type: ignore[misc]


def test_every_option_has_one_line_of_description_in_the_table() -> None:
    table = options_table()
    assert [row.key for row in table if "[]" not in row.key] == all_keys()
    for row in table:
        assert row.description, row.key
        assert "\n" not in row.description
        assert row.type, row.key
    rows = {row.key: row for row in table}
    assert rows["model"].default == "required"
    assert rows["loss.beta"][1:3] == ("a number > 0", "0.1")
    assert rows["data.template"][1:3] == ("one of auto, chat, raw", '"auto"')


def test_numbers_are_not_made_of_text_or_truth_values() -> None:
    for values in (
        {"batch_size": "8"},
        {"batch_size": True},
        {"learning_rate": "1e-5"},
        {"learning_rate": True},
    ):
        with pytest.raises(ValidationError):
            Recipe.model_validate({"model": "m", "data": {"train": "t"}, "train": values})


def test_hints_name_what_exists() -> None:
    assert set(LOSS_SYNONYMS.values()) <= set(LOSSES)
    for name, (entry, programs) in names_elsewhere().items():
        assert entry.key is None or field_at(entry.key), entry
        assert programs
        assert field_at(name) is None, f"{name} is an option, not only a name used elsewhere"


@pytest.mark.parametrize(
    ("section", "name", "dotted", "hint"),
    [
        ("train", "learning_rte", False, "did you mean learning_rate?"),
        ("train", "learning_rte", True, "did you mean train.learning_rate?"),
        ("train", "beta", False, "did you mean loss.beta?"),
        ("", "gradient_checkpoint", False, "did you mean train.gradient_checkpointing?"),
        ("lora", "alpha", False, "did you mean lora.scale (alpha / rank)?"),
        (
            "train",
            "gradient_accumulation_steps",
            False,
            "did you mean train.batch_size (the effective batch: per-device size x accumulation steps x "
            "devices; train.micro_batch_size is how many are in memory at once)?",
        ),
        ("save", "zzz", False, "save has every, keep"),
        ("", "loss.beta", False, "write `loss:` on one line and `beta:` indented below it"),
    ],
)
def test_unknown_keys_get_the_most_likely_one(section: str, name: str, dotted: bool, hint: str) -> None:
    assert unknown_key(section, name, dotted) == f"unknown key; {hint}"


def test_a_key_of_another_program_without_a_counterpart_says_what_there_is() -> None:
    message = unknown_key("train", "bf16", dotted=False)
    assert message == (
        "unknown key, without a counterpart: weights keep the type of the model's folder on a GPU and are "
        "float32 on a CPU; adapters are float32"
    )


def test_expectations_are_worded_from_types_and_bounds() -> None:
    wanted = {
        "train.warmup": "a whole number >= 0 or a number >= 0 and < 1",
        "data.valid_fraction": "a number > 0 and <= 0.5",
        "train.gradient_checkpointing": "auto or true or false",
        "lora.keys": "a list of one or more texts or null",
        "loss.type": "text or a list of one or more texts",
        "loss.weights": "a list of one or more numbers > 0 or null",
    }
    for key, text in wanted.items():
        field = field_at(key)
        assert field is not None
        assert expected(field) == text
