from __future__ import annotations

from typing import Any

import pytest
import yaml

from localdpo.launch.begin import differing_keys
from localdpo.launch.recipediff import options_of
from localdpo.recipe.load import dump_recipe
from localdpo.recipe.schema import Recipe
from localdpo.records.wording import differing, flatten


def test_entries_of_lists_of_data_sets_differ_one_by_one():
    one = options_of(
        "data: {train: [{source: a, weight: 1.0}, {source: b, weight: 0.5}]}\nlora: {keys: [q, k]}"
    )
    two = options_of("data: {train: [{source: a, weight: 2.0}]}\nlora: {keys: [q, k]}")
    three = options_of("data: {train: a}\nlora: {keys: [q]}")
    assert one is not None
    assert two is not None
    assert three is not None
    assert differing([one, two]) == [
        ("data.train[0].weight", ["1", "2"]),
        ("data.train[1].source", ["b", ""]),
        ("data.train[1].weight", ["0.5", ""]),
    ]
    assert ("data.train", ["", "a"]) in differing([two, three])
    assert ("lora.keys", ["['q', 'k']", "['q']"]) in differing([two, three])


def dump_of(values: dict[str, Any]) -> str:
    return dump_recipe(Recipe.model_validate(values))


def without(text: str, key: str) -> str:
    """The recipe as a version wrote it that had no such option."""
    values = yaml.safe_load(text)
    *above, last = key.split(".")
    options = values
    for name in above:
        options = options[name]
    del options[last]
    return yaml.safe_dump(values)


NEEDED = {"model": "a", "data": {"train": "b"}}


@pytest.mark.parametrize("loss", ["sigmoid", "sft", "simpo", "kto"])
def test_a_run_that_began_before_an_option_was_there_has_its_default(loss: str):
    today = dump_of({**NEEDED, "loss": loss})
    keys = {key for key in flatten(yaml.safe_load(today)) if key not in ("model", "data.train", "loss.type")}
    assert {"train.reference", "train.compile"} <= keys
    for key in keys | {"report_to", "data.chat_template_kwargs", "eval", "save"}:
        assert differing_keys(without(today, key), today) == "", key


def test_other_values_than_the_defaults_still_differ():
    old = without(dump_of(NEEDED), "train.reference")
    assert (
        differing_keys(old, dump_of({**NEEDED, "train": {"reference": "ahead", "epochs": 2}}))
        == "train.epochs: 1 there, 2 here; train.reference: as_needed there, ahead here"
    )
    # One epoch, written down or not; with max_steps it is a limit, and none is not.
    assert differing_keys(dump_of({**NEEDED, "train": {"epochs": 1}}), dump_of(NEEDED)) == ""
    limited = [{**NEEDED, "train": {"max_steps": 5, **epochs}} for epochs in ({"epochs": 1}, {})]
    assert differing_keys(*map(dump_of, limited)) == "train.epochs: 1 there, null here"
