"""The recipe of a real model: its prompts follow from the seed, its splits are apart, its files are read."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from recipe_files import ROOT

from localdpo.data.prompts import PromptRow, read_prompt_rows
from localdpo.heuristics.checks import check_rows, load_checks
from localdpo.heuristics.constraints import CONSTRAINTS
from localdpo.recipe.load import load_recipe

FOLDER = ROOT / "recipes" / "smollm2"


def test_prompts_of_topics_and_kinds_that_are_apart(tmp_path: Path) -> None:
    script = runpy.run_path(str(FOLDER / "prompts.py"))
    script["main"](tmp_path / "a")
    script["main"](tmp_path / "b")
    rows: dict[str, list[PromptRow]] = {}
    for name, count in (("train", 900), ("heldout", 300), ("unseen", 150)):
        file = tmp_path / "a" / f"{name}.jsonl"
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()
        rows[name] = read_prompt_rows(str(file))
        assert len(rows[name]) == count
        check_rows(load_checks(FOLDER / "checks.yaml"), rows[name])
    kinds = {
        name: {each["kind"] for row in found for each in row.facts["constraints"]}
        for name, found in rows.items()
    }
    unseen = set(script["UNSEEN_KINDS"])
    assert kinds["train"] == kinds["heldout"] == set(CONSTRAINTS) - unseen
    # An answer has a least number of words in every prompt.
    assert all(
        any(each["kind"] == "words" for each in row.facts["constraints"])
        for found in rows.values()
        for row in found
    )
    assert kinds["unseen"] == unseen | {"words"}
    lines = (FOLDER / "topics.txt").read_text().splitlines()
    topics = [topic.strip() for line in lines for topic in line.partition(":")[2].split(",")]
    assert len(set(topics)) == 600
    tasks = "|".join(re.escape(task).replace(r"\{topic\}", "(.*?)") for task in script["TASKS"])
    asked = {
        name: {next(filter(None, re.match(tasks, row.text).groups())) for row in found}  # type: ignore[union-attr]
        for name, found in rows.items()
    }
    assert not asked["train"] & (asked["heldout"] | asked["unseen"])
    assert asked["train"] | asked["heldout"] == set(topics)
    assert not any(re.search(r"\{\w*\}", row.text) for found in rows.values() for row in found)


def test_the_recipe_loads() -> None:
    recipe = load_recipe(FOLDER / "dpo.yaml")
    assert recipe.loss.spec.data == "pairs"
    assert recipe.rounds.checks is not None
    assert (ROOT / recipe.rounds.checks).samefile(FOLDER / "checks.yaml")
    names = {Path(str(name)).name for name in (recipe.rounds.prompts, recipe.eval.prompts)}
    assert names == {"train.jsonl", "heldout.jsonl"}
