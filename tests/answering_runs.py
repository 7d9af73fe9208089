"""Run folders with random adapters, ready to be compared."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
from mlx_lm import load as mlx_lm_load
from mlx_lm import stream_generate
from tiny_folders import make_adapter, recipe_text, write_pairs

from localdpo.core.atomic import write_manifest
from localdpo.data.prompts import PromptRow
from localdpo.data.types import Side
from localdpo.records.checkpoints import set_latest
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir

PROMPTS: list[Side] = ["What is question number 7?", [{"role": "user", "content": "The answer is bad."}]]


def rows(count: int = 2) -> list[PromptRow]:
    """The two prompts, then numbered ones."""
    more: list[Side] = [f"What is the answer to question {i}?" for i in range(2, count)]
    return [PromptRow(prompt) for prompt in [*PROMPTS, *more][:count]]


def run_folder(
    folder: Path, model: Path, start: Path | None, kind: str = "lora", loss: str = "sigmoid", seed: int = 77
) -> RunDir:
    """A run folder with one checkpoint, whose adapter is a random one."""
    run = RunDir(folder)
    folder.mkdir(parents=True)
    pairs = write_pairs(folder / "pairs.jsonl", 2)
    sections = {"loss": {"type": loss}} | ({"adapter": str(start)} if start else {})
    run.recipe.write_text(recipe_text(model, pairs, **sections))
    make_adapter(run.checkpoint_path(3), model, seed=seed, kind=kind)
    write_manifest(run.checkpoint_path(3))
    set_latest(run.checkpoint_path(3))
    with EventWriter(run.events) as log:
        log.write("step", 3)
    return run


def mlx_lm_model(model: Path, adapter: Path | None) -> tuple[object, object]:
    """Model and tokenizer as mlx-lm loads them, float32."""
    loaded, tokenizer, *_ = mlx_lm_load(str(model), adapter_path=None if adapter is None else str(adapter))
    loaded.set_dtype(mx.float32)
    return loaded, tokenizer


def mlx_lm_answers(model: Path, adapter: Path | None, max_tokens: int) -> list[str]:
    """What mlx-lm itself answers to PROMPTS, greedily."""
    loaded, tokenizer = mlx_lm_model(model, adapter)
    answers = []
    for prompt in PROMPTS:
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        tokens = [r.token for r in stream_generate(loaded, tokenizer, ids, max_tokens=max_tokens)]
        answers.append(tokenizer.decode(tokens, skip_special_tokens=True))
    return answers
