"""Which prompts a run is asked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from localdpo.answering.prompts import HeldOut, choose_prompts, default_sources
from localdpo.core.errors import UserError, UserErrors
from localdpo.data.prompts import prompt_id, read_prompt_rows
from localdpo.model.load import load_tokenizer
from localdpo.recipe.load import load_recipe
from localdpo.records.rundir import RunDir
from localdpo.train import inputs
from localdpo.train.data import open_rows


def run_of(tmp_path: Path, recipe: str) -> RunDir:
    return RunDir.create(tmp_path / "runs", "dpo", recipe)


def test_given_prompts_come_first_then_those_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "two"}]
    rows = [{"prompt": "one", "chosen": "x"}, {"prompt": messages, "facts": {"a": 1}}, {"prompt": "three"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunDir(tmp_path)
    found, source = choose_prompts(run, str(file), ["mine"], 2)
    assert [row.prompt for row in found] == ["mine", "one", messages]
    assert [dict(row.facts) for row in found] == [{}, {"chosen": "x"}, {"facts": {"a": 1}}]
    assert [row.text for row in found] == ["mine", "one", "two"]
    assert source == f"given prompts, {file}"
    alone, source = choose_prompts(run, None, ["mine"], 2)
    assert [row.prompt for row in alone] == ["mine"]
    assert source == "given prompts"
    assert len(choose_prompts(run, str(file), [], None)[0]) == 3
    with pytest.raises(UserError, match="is no valid Unicode; give the text as UTF-8"):
        choose_prompts(run, None, ["a\udcff"], 2)


def test_the_id_of_a_prompt_is_a_hash_of_it(tmp_path: Path) -> None:
    assert prompt_id("one") == prompt_id("one")
    assert len({prompt_id("one"), prompt_id("two"), prompt_id([{"role": "user", "content": "one"}])}) == 3
    assert prompt_id([{"role": "a", "content": "b"}]) == prompt_id([{"content": "b", "role": "a"}])
    assert all(char in "0123456789abcdef" for char in prompt_id("ü"))


def test_held_out_prompts_are_found_from_the_recipe(tmp_path: Path) -> None:
    demo = "model: demo:model\ndata: {train: 'demo:preferences/train'}\n"
    assert default_sources(run_of(tmp_path / "a", demo)) == (HeldOut("demo:prompts/heldout"),)
    assert default_sources(run_of(tmp_path / "b", demo + "eval: {prompts: my.jsonl}\n")) == (
        HeldOut("my.jsonl"),
    )
    own = "model: m\ndata: {train: t.jsonl, format: orca, valid: [v.jsonl, {source: w.jsonl, limit: 3}]}\n"
    assert default_sources(run_of(tmp_path / "c", own)) == (
        HeldOut("v.jsonl", "pairs", "orca"),
        HeldOut("w.jsonl", "pairs", "orca", 3),
    )


def test_rows_that_were_held_out_of_the_training_data_are_found_again(
    tmp_path: Path, tiny_model: Path
) -> None:
    names = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    for name in names:
        # Every prompt twice: both rows are on one side.
        prompts = [f"{Path(name).stem}{n // 2}" for n in range(40)]
        rows = [{"prompt": prompt, "chosen": f"x{n}", "rejected": "y"} for n, prompt in enumerate(prompts)]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = f"model: {tiny_model}\ndata: {{train: {json.dumps(names)}, valid_fraction: 0.25, limit: 30}}\n"
    run = run_of(tmp_path, text)
    recipe = load_recipe(run.recipe)
    inputs.keep(run, [inputs.recipe_input(run), *inputs.inputs_of(recipe)])
    found, source = choose_prompts(run, None, [], None)
    assert source == ", ".join(names)
    asked = [row.text for row in found]
    assert 3 < len(asked) == len(set(asked)) < 15
    train, valid = open_rows(recipe, load_tokenizer(recipe.model))
    assert 2 * len(found) == len(valid)
    trained = {train.store.name_rows(np.array([index])) for index in train.indices}
    for name in names:
        held = [n for n in range(30) if f"{Path(name).stem}{n // 2}" in asked]
        assert not trained & {f"row {n + 1} of {name}" for n in held}
    assert [row.text for row in choose_prompts(run, None, [], 3)[0]] == [row.text for row in found[:3]]


def test_a_run_that_holds_nothing_out_asks_for_prompts(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps({"prompt": "a", "chosen": "x", "rejected": "y"}) + "\n")
    run = run_of(tmp_path, f"model: {tiny_model}\ndata: {{train: {file}}}\n")
    inputs.keep(run, [inputs.recipe_input(run), *inputs.inputs_of(load_recipe(run.recipe))])
    with pytest.raises(UserError, match="holds no prompts out; give --prompts FILE or --prompt TEXT"):
        default_sources(run)


def test_rows_that_changed_since_training_are_not_asked_as_held_out(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "rows.jsonl"
    lines = [json.dumps({"prompt": f"{n}", "chosen": "x", "rejected": "y"}) + "\n" for n in range(12)]
    file.write_text("".join(lines))
    run = run_of(tmp_path, f"model: {tiny_model}\ndata: {{train: {file}, valid_fraction: 0.25}}\n")
    with pytest.raises(UserError, match="nothing says which rows it held out; give --prompts FILE"):
        default_sources(run)
    inputs.keep(run, [inputs.recipe_input(run), *inputs.inputs_of(load_recipe(run.recipe))])
    (held_out,) = default_sources(run)
    assert held_out.only
    file.write_text("".join(lines[1:]))
    with pytest.raises(UserErrors, match=r"rows.jsonl.* since run dpo began, so it may have trained on"):
        default_sources(run)
    file.write_text("".join(lines))
    assert default_sources(run) == (held_out,)


def test_a_prompt_of_several_rows_is_asked_once(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    prompts = ["one", "two", "one", "mine", "three", "two"]
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    run = RunDir(tmp_path)
    found, _ = choose_prompts(run, str(file), ["mine", "mine"], None)
    assert [row.text for row in found] == ["mine", "one", "two", "three"]
    assert [row.text for row in choose_prompts(run, str(file), [], 3)[0]] == ["one", "two", "mine"]
    # Nothing is left of the file, and that is no error.
    file.write_text(json.dumps({"prompt": "mine"}) + "\n")
    assert [row.text for row in choose_prompts(run, str(file), ["mine"], None)[0]] == ["mine"]


def test_prompts_of_several_held_out_data_sets_come_one_after_the_other(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
    for name in names:
        rows = [{"prompt": f"{Path(name).stem}{n}", "chosen": "x", "rejected": "y"} for n in range(2)]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = run_of(tmp_path, f"model: m\ndata: {{train: [t.jsonl, u.jsonl], valid: {json.dumps(names)}}}\n")
    found, source = choose_prompts(run, None, [], None)
    assert [row.prompt for row in found] == ["a0", "a1", "b0", "b1"]
    assert source == ", ".join(names)
    assert [row.prompt for row in choose_prompts(run, None, [], 3)[0]] == ["a0", "a1", "b0"]
    assert [row.prompt for row in choose_prompts(run, None, [], 2)[0]] == ["a0", "a1"]
    demo = "model: m\ndata: {train: ['demo:preferences/train', 'demo:preferences/valid']}\n"
    assert default_sources(run_of(tmp_path / "demo", demo)) == (HeldOut("demo:prompts/heldout"),)


def test_the_demo_has_facts_beside_its_prompts(tmp_path: Path) -> None:
    demo = "model: demo:model\ndata: {train: 'demo:preferences/train'}\n"
    rows, source = choose_prompts(run_of(tmp_path, demo), None, [], 3)
    assert source == "demo:prompts/heldout"
    assert all(row.facts["facts"]["service"] for row in rows)


def test_rows_without_a_prompt_are_named(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"text": "b"}\n{"prompt": 3}\n{broken\n')
    with pytest.raises(UserErrors) as caught:
        read_prompt_rows(str(file), 10)
    assert [line.split()[0] for line in caught.value.lines] == [f"{file}:{row}" for row in (2, 3, 4)]
    assert [row.prompt for row in read_prompt_rows(str(file), 1)] == ["a"]


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_prompt_rows(str(tmp_path / "nothing.jsonl"), 3)
