"""Lists of data sets in a recipe: what they may say, what is wrong at which line, and that they survive."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_files import SMALLEST, problems, write

from localdpo.recipe.describe import options_table
from localdpo.recipe.load import dump_recipe, load_recipe
from localdpo.recipe.schema import DataSource, WeightedSource

MIXED = """model: demo:model
data:
  train:
    - a.jsonl
    - source: b.jsonl
      weight: 0.5
      max_length: 100
  valid: [c.jsonl, {source: d.jsonl, limit: 3}]
"""


def test_entries_are_names_or_options(tmp_path: Path) -> None:
    data = load_recipe(write(tmp_path, MIXED)).data
    assert data.train_sources == (
        WeightedSource(source="a.jsonl"),
        WeightedSource(source="b.jsonl", weight=0.5, max_length=100),
    )
    assert data.valid_sources == (DataSource(source="c.jsonl"), DataSource(source="d.jsonl", limit=3))
    assert data.train_sources[0].weight == 1.0


def test_text_is_one_entry_and_the_demo_is_known(tmp_path: Path) -> None:
    data = load_recipe(write(tmp_path, SMALLEST)).data
    assert data.train_sources == (WeightedSource(source="pairs.jsonl"),)
    assert data.valid_sources == ()
    both = ["data.train=['demo:preferences/train', 'demo:preferences/valid']"]
    assert load_recipe(write(tmp_path, SMALLEST), both).data.is_demo
    other = ["data.train=['demo:preferences/train', a.jsonl]"]
    assert not load_recipe(write(tmp_path, SMALLEST), other).data.is_demo


def test_an_override_replaces_the_list_and_its_mistakes(tmp_path: Path) -> None:
    text = "model: demo:model\ndata:\n  train:\n    - 5\n    - &a b\n"
    assert load_recipe(write(tmp_path, text), ["data.train=x.jsonl"]).data.train == "x.jsonl"
    found = load_recipe(write(tmp_path, SMALLEST), ["data.train=[a, {source: b, weight: 2}]"]).data
    assert [(each.source, each.weight) for each in found.train_sources] == [("a", 1.0), ("b", 2.0)]


def test_what_is_wrong_is_named_at_its_line(tmp_path: Path) -> None:
    text = """model: demo:model
data:
  train:
    - source: a
      weight: 0
      wieght: 3
      path: b
    - weight: 3
    - 5
    - source: 5
      max_length: 1
      truncation: middle
  valid: [{source: b, weight: 2}]
"""
    options = "source, weight, format, limit, max_length, max_prompt_length, truncation"
    assert problems(tmp_path, text) == [
        "r.yaml:5 data.train[0].weight: expected a number > 0 and <= 100, got 0",
        "r.yaml:6 data.train[0].wieght: unknown key; did you mean weight?",
        f"r.yaml:7 data.train[0].path: unknown key; an entry of data.train has {options}",
        "r.yaml:8 data.train[1].source: missing; expected text: "
        "file, hub data set or demo: name, as in data.train",
        "r.yaml:9 data.train[2]: expected text, or options such as `source:`, got 5",
        "r.yaml:10 data.train[3].source: expected text, got 5; put it in quotes",
        "r.yaml:11 data.train[3].max_length: expected a whole number >= 2 or null, got 1",
        'r.yaml:12 data.train[3].truncation: expected one of keep_start, keep_end or null, got "middle"',
        f"r.yaml:13 data.valid[0].weight: unknown key; an entry of data.valid has "
        f"{options.replace('weight, ', '')}",
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=[]", "data.train=[]: expected text or a list of one or more data sets, got []"),
        (
            "data.train=[{source: a, weight: 1e9}]",
            "data.train=[{source: a, weight: 1e9}] data.train[0].weight: "
            "expected a number > 0 and <= 100, got 1000000000.0",
        ),
        ("data.train[0].weight=3", "data.train[0].weight=3: set the complete list: data.train=[...]"),
        (
            "data.valid={source: a}",
            "data.valid={source: a}: expected text or a list of one or more data sets or null, "
            'got {"source": "a"}',
        ),
    ],
)
def test_mistakes_of_an_override(override: str, message: str, tmp_path: Path) -> None:
    assert problems(tmp_path, SMALLEST, override) == [message]


@pytest.mark.parametrize(
    ("options", "train", "message"),
    [
        ("max_length: 2000", "", "max_length: expected at most train.max_length (1024), got 2000"),
        ("max_length: 65", "max_length: 64", "max_length: expected at most train.max_length (64), got 65"),
        (
            "{max_length: 64, max_prompt_length: 64}",
            "",
            "max_prompt_length: expected less than its max_length (64), got 64",
        ),
        (
            "max_length: 400",
            "max_prompt_length: 500",
            "max_length: expected more than train.max_prompt_length (500), got 400",
        ),
    ],
)
def test_limits_go_with_the_recipes_own(options: str, train: str, message: str, tmp_path: Path) -> None:
    text = f"model: m\ndata:\n  train: [a, {{source: b, {options.strip('{}')}}}]\ntrain: {{{train}}}\n"
    assert problems(tmp_path, text) == [f"r.yaml:3 data.train[1].{message}"]


entries = st.fixed_dictionaries(
    {"source": st.sampled_from(["a.jsonl", "no", "1e-5", "org/name[x]:train"])},
    optional={
        "weight": st.floats(0.001, 100),
        "format": st.sampled_from([None, "preference"]),
        "limit": st.integers(1, 9) | st.none(),
        "max_length": st.integers(200, 1024) | st.none(),
        "max_prompt_length": st.integers(1, 199) | st.none(),
        "truncation": st.sampled_from([None, "keep_end"]),
    },
)


@given(found=st.lists(entries, min_size=1, max_size=3))
def test_a_dumped_list_loads_back(
    found: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("dump")
    recipe = load_recipe(write(folder, json.dumps({"model": "m", "data": {"train": found}})))
    assert load_recipe(write(folder, dump_recipe(recipe))) == recipe


def test_the_table_describes_the_options_of_an_entry_once() -> None:
    keys = [option.key for option in options_table() if "[]" in option.key]
    assert keys[:2] == ["data.train[].source", "data.train[].weight"]
    assert {key.removeprefix("data.train[].") for key in keys} == set(WeightedSource.model_fields)
