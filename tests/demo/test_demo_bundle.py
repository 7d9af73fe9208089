from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx_lm
import numpy as np
import pytest
from mlx_lm.sample_utils import make_sampler

from localdpo import incidents
from localdpo.core.names import BUNDLE, DEMO_NAMES, resolve
from localdpo.demo import build, dataset
from localdpo.incidents import Facts
from localdpo.judging.without_model import BEST_TOTAL
from localdpo.model.generate import generate
from localdpo.model.load import load_base

pytestmark = pytest.mark.slow

DATA = [name for name in DEMO_NAMES if "/" in name]


def rows_of(name: str) -> list[dict[str, Any]]:
    return dataset.read_rows(resolve(name))


def test_the_bundle_is_small_and_complete() -> None:
    assert sum(file.stat().st_size for file in BUNDLE.rglob("*") if file.is_file()) <= 6_000_000
    assert all(resolve(name).exists() for name in DEMO_NAMES)


def test_no_two_data_sets_share_facts() -> None:
    facts = {name: {Facts.from_dict(row["facts"]) for row in rows_of(name)} for name in DATA}
    for name, own in facts.items():
        assert len(own) == len(rows_of(name))
        for other in DATA:
            assert other == name or not own & facts[other]


@pytest.mark.parametrize("name", ["demo:preferences/train", "demo:preferences/valid"])
def test_pairs_obey_the_rules(name: str) -> None:
    rows = rows_of(name)
    assert len(rows) == dataset.KEPT[name.removeprefix("demo:")]
    for row in rows:
        facts = Facts.from_dict(row["facts"])
        (chosen,), (rejected,) = row["chosen"], row["rejected"]
        assert {chosen["role"], rejected["role"]} == {"assistant"}
        better, worse = incidents.judge(chosen["content"], facts), incidents.judge(rejected["content"], facts)
        assert better.beats(worse)
        scores = [1 + 4 * found.total / BEST_TOTAL for found in (better, worse)]
        assert scores == [row["score_chosen"], row["score_rejected"]]
        assert better.total > worse.total


@pytest.mark.parametrize("name", DATA)
def test_prompts_tell_the_stored_facts(name: str) -> None:
    for row in rows_of(name):
        messages = row.get("prompt") or row["messages"][:-1]
        assert [message["role"] for message in messages] == ["user"]
        facts, text = Facts.from_dict(row["facts"]), messages[0]["content"]
        assert text.startswith(f"{incidents.INSTRUCTION}\n")
        for value in (
            facts.service,
            facts.region,
            f"{facts.percent}%",
            f"{facts.minutes} min",
            str(facts.customers),
        ):
            assert value in text


def test_demonstrations_are_of_mixed_quality_in_one_format() -> None:
    rows = rows_of("demo:demonstrations/train")
    verdicts = [
        incidents.judge(row["messages"][-1]["content"], Facts.from_dict(row["facts"])) for row in rows
    ]
    assert all(verdict.conforms for verdict in verdicts)
    assert 0.55 < np.mean([verdict.severity for verdict in verdicts]) < 0.85
    assert 0.45 < np.mean([verdict.faithful for verdict in verdicts]) < 0.8


def test_data_that_needs_no_model_is_what_the_build_makes(tmp_path: Path) -> None:
    incidents = dataset.split_incidents(build.SEED)
    build.make_demonstrations(tmp_path, incidents, build.SEED)
    for name in ("demonstrations/train", "demonstrations/valid"):
        assert (tmp_path / f"{name}.jsonl").read_text() == (BUNDLE / f"{name}.jsonl").read_text()
    heldout = [dataset.prompt_row(incident) for incident in incidents["prompts/heldout"]]
    assert rows_of("demo:prompts/heldout") == heldout


def test_mlx_lm_loads_model_and_adapter_and_answers_in_the_format() -> None:
    model, tokenizer = mlx_lm.load(str(resolve("demo:model")), adapter_path=str(resolve("demo:sft")))
    row = rows_of("demo:prompts/heldout")[0]
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)
    text = mlx_lm.generate(model, tokenizer, prompt, max_tokens=80, sampler=make_sampler(temp=0.0))
    assert incidents.parse(text) is not None


def test_the_base_model_answers_but_not_in_the_format() -> None:
    base = load_base("demo:model")
    rows = rows_of("demo:prompts/heldout")[:16]
    prompts = [
        base.tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
        for row in rows
    ]
    answers = generate(base.model, base.tokenizer, prompts, max_tokens=80, temperature=1.0, seed=0)
    verdicts = [
        incidents.judge(answer.text, Facts.from_dict(row["facts"]))
        for answer, row in zip(answers, rows, strict=True)
    ]
    assert all(answer.finished for answer in answers)
    assert np.mean([verdict.conforms for verdict in verdicts]) < 0.3
    assert np.mean([verdict.severity for verdict in verdicts]) > 0.5
