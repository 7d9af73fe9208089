"""Answers of base, SFT and trained adapter in batches, against one by one (`make bench`).

The demo's model and SFT adapter, and a stand-in for the trained one (SFT with other weights), answer the same
held-out prompts with the same seeds and sampling; both ways are timed on all prompts, in turns of one group.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from localdpo.answering.contestants import Contestant, Contestants
from localdpo.answering.generator import GROUP, prompt_seeds
from localdpo.data.encode import encode_prompt
from localdpo.data.prompts import read_prompt_rows
from localdpo.model import lora
from localdpo.model.arrays import load_arrays
from localdpo.model.backend import prepare
from localdpo.model.generate import SampledAnswer, generate_apart
from localdpo.model.load import load_base

PROMPTS = 200
MAX_TOKENS = 128
TEMPERATURE = 1.0


def trained(folder: Path) -> Path:
    """The SFT adapter with a little noise on its weights, in place of a trained one."""
    sft = lora.open_adapter("demo:sft").path
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays = load_arrays(sft / lora.WEIGHTS_FILE)
    noisy = {n: w + mx.array(rng.normal(size=w.shape).astype(np.float32) * 0.002) for n, w in arrays.items()}
    mx.save_safetensors(str(folder / lora.WEIGHTS_FILE), noisy)
    (folder / lora.CONFIG_FILE).write_text((sft / lora.CONFIG_FILE).read_text())
    return folder


def seconds(call: Callable[[], Iterator[tuple[int, SampledAnswer]]]) -> tuple[float, int]:
    """Time taken, and tokens of the answers."""
    began = time.perf_counter()
    tokens = sum(len(answer.drawn) for _, answer in call())
    return time.perf_counter() - began, tokens


def test_batches_against_one_by_one(tmp_path: Path) -> None:
    backend = prepare()
    base = load_base("demo:model")
    rows = read_prompt_rows("demo:prompts/heldout", PROMPTS)
    ids = [encode_prompt(base.tokenizer._tokenizer, row.prompt, "auto").tolist() for row in rows]
    seeds = prompt_seeds(rows, 0)
    folders = {"base": None, "sft": lora.open_adapter("demo:sft").path, "dpo": trained(tmp_path / "dpo")}
    models = Contestants(base, [Contestant(name, name, folder, "") for name, folder in folders.items()])

    def answers(part: slice) -> Iterator[tuple[int, SampledAnswer]]:
        return generate_apart(
            base.model,
            base.tokenizer,
            ids[part],
            seeds[part],
            max_tokens=MAX_TOKENS,
            temperatures=[TEMPERATURE] * len(seeds[part]),
            batch=GROUP,
        )

    together = alone = 0.0
    tokens = [0, 0]
    for name in folders:
        with models.use(name):
            list(answers(slice(0, 2)))  # kernels are compiled before anything is timed
            for start in range(0, len(ids), GROUP):
                group = range(start, min(start + GROUP, len(ids)))
                took, count = seconds(lambda g=group: answers(slice(g.start, g.stop)))
                together, tokens[0] = together + took, tokens[0] + count
                for i in group:
                    took, count = seconds(lambda i=i: answers(slice(i, i + 1)))
                    alone, tokens[1] = alone + took, tokens[1] + count
    print(f"\n{backend.device}, BLAS {backend.blas}; {len(ids)} prompts x {len(folders)} models, demo model")
    print(f"in groups of {GROUP}: {together:6.1f} s  {tokens[0] / together:6.0f} tokens/s")
    print(f"one by one:      {alone:6.1f} s  {tokens[1] / alone:6.0f} tokens/s")
    print(f"ratio {alone / together:.2f}")
