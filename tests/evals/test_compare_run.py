"""Base, start adapter and trained adapter answer the same prompts from one load of the base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from mlx_lm import load as mlx_lm_load
from mlx_lm import stream_generate
from tiny_folders import make_adapter, recipe_text, write_pairs

from localdpo.core.errors import UserError
from localdpo.core.rundir import RunDir
from localdpo.data.types import Side
from localdpo.evals import compare
from localdpo.evals.compare import compare_run

PROMPTS: list[Side] = ["What is question number 7?", [{"role": "user", "content": "The answer is bad."}]]


def run_folder(folder: Path, model: Path, pairs: Path, start: Path | None, kind: str = "lora") -> RunDir:
    """A run folder with one checkpoint, whose adapter is a random one."""
    run = RunDir(folder)
    folder.mkdir()
    run.recipe.write_text(recipe_text(model, pairs, **({"adapter": str(start)} if start else {})))
    make_adapter(run.checkpoint_path(3), model, seed=77, kind=kind)
    run.set_latest(run.checkpoint_path(3))
    return run


def answered(run: Path, **options: Any) -> list[compare.Comparison]:
    return compare_run(run, PROMPTS, **{"max_tokens": 10, "temperature": 0.0, "seed": 0, **options})


def mlx_lm_answers(model: Path, adapter: Path | None) -> list[str]:
    """What mlx-lm itself answers, greedily."""
    loaded, tokenizer, *_ = mlx_lm_load(str(model), adapter_path=None if adapter is None else str(adapter))
    loaded.set_dtype(mx.float32)
    answers = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        tokens = [r.token for r in stream_generate(loaded, tokenizer, ids, max_tokens=10)]
        answers.append(tokenizer.decode(tokens, skip_special_tokens=True))
    return answers


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_each_column_is_what_mlx_lm_answers_with_that_adapter(
    kind: str, tmp_path: Path, tiny_model: Path
) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 2)
    make_adapter(tmp_path / "sft", tiny_model, kind=kind)
    run = run_folder(tmp_path / "run", tiny_model, pairs, tmp_path / "sft", kind)
    found = answered(run.path)
    assert [c.prompt for c in found] == ["What is question number 7?", "The answer is bad."]
    base, sft, dpo = (
        mlx_lm_answers(tiny_model, path) for path in (None, tmp_path / "sft", run.checkpoint_path(3))
    )
    assert [c.base for c in found] == base
    assert [c.sft for c in found] == sft
    assert [c.dpo for c in found] == dpo
    assert base != sft != dpo != base


def test_a_run_without_a_start_adapter_has_two_columns(tmp_path: Path, tiny_model: Path) -> None:
    run = run_folder(tmp_path / "run", tiny_model, write_pairs(tmp_path / "pairs.jsonl", 2), None)
    found = answered(run.path)
    assert [c.sft for c in found] == [None, None]
    assert [c.base for c in found] == mlx_lm_answers(tiny_model, None)


def test_the_base_is_loaded_once_and_answers_follow_the_seed(
    tmp_path: Path, tiny_model: Path, sft_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 2)
    run = run_folder(tmp_path / "run", tiny_model, pairs, sft_adapter)
    loads: list[str] = []
    load_base = compare.load_base

    def counted(name: str, **options: Any) -> Any:
        loads.append(name)
        return load_base(name, **options)

    monkeypatch.setattr(compare, "load_base", counted)
    first = answered(run.path, temperature=1.0, seed=5)
    assert loads == [str(tiny_model)]
    assert answered(run.path, temperature=1.0, seed=5) == first
    assert answered(run.path, temperature=1.0, seed=6) != first


def test_a_run_without_a_checkpoint_is_said(tmp_path: Path, tiny_model: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.path.mkdir()
    run.recipe.write_text(recipe_text(tiny_model, tmp_path / "pairs.jsonl"))
    with pytest.raises(UserError, match="no checkpoint to compare yet"):
        answered(run.path)


def test_what_went_missing_since_the_run_is_said(tmp_path: Path, tiny_model: Path, sft_adapter: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 2)
    run = run_folder(tmp_path / "run", tiny_model, pairs, tmp_path / "gone")
    with pytest.raises(UserError, match="gone: no such folder"):
        answered(run.path)
