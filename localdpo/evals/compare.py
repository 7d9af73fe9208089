"""Answers of base, SFT and trained adapter to the same prompts, from one load of the base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localdpo.core.errors import UserError
from localdpo.core.rundir import RunDir
from localdpo.data.encode import encode_prompt
from localdpo.data.prompts import prompt_text
from localdpo.data.types import Side
from localdpo.model import lora
from localdpo.model.backend import prepare
from localdpo.model.generate import generate
from localdpo.model.load import load_base
from localdpo.recipe.load import load_recipe


@dataclass(frozen=True)
class Comparison:
    """The answers to one prompt; `sft` is None for a run that started without an adapter."""

    prompt: str
    base: str
    sft: str | None
    dpo: str


def compare_run(
    run_dir: Path, prompts: Sequence[Side], *, max_tokens: int, temperature: float, seed: int
) -> list[Comparison]:
    """Answers to `prompts` with the same sampling and seed for every model.

    The base is loaded once; the adapters' weights are exchanged in it.

    Raises:
        UserError: the run has no checkpoint yet, or its model or adapter cannot be loaded.
    """
    prepare()
    run = RunDir(run_dir)
    latest = run.latest_checkpoint()
    if latest is None:
        raise UserError(f"{run_dir}: no checkpoint to compare yet")
    recipe = load_recipe(run.recipe)
    base = load_base(recipe.model, trust_remote_code=recipe.trust_remote_code)
    lora.attach(base.model, lora.read_config(latest), seed=0)
    weights = {"base": lora.adapter_weights(base.model)}
    if recipe.adapter is not None:
        lora.load_weights(base.model, lora.adapter_path(recipe.adapter))
        weights["sft"] = lora.adapter_weights(base.model)
    lora.load_weights(base.model, latest)
    weights["dpo"] = lora.adapter_weights(base.model)
    tokens = [encode_prompt(base.tokenizer._tokenizer, p, recipe.data.template).tolist() for p in prompts]

    def answers(name: str) -> list[str]:
        with lora.use(base.model, weights[name]):
            found = generate(
                base.model, base.tokenizer, tokens, max_tokens=max_tokens, temperature=temperature, seed=seed
            )
        return [answer.text for answer in found]

    by_model = {name: answers(name) for name in weights}
    return [
        Comparison(
            prompt_text(p),
            by_model["base"][i],
            by_model["sft"][i] if "sft" in by_model else None,
            by_model["dpo"][i],
        )
        for i, p in enumerate(prompts)
    ]
