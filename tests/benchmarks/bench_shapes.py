"""What bounding the shapes of a traced step costs and keeps: padding, traces, resident memory; `make bench`.

And what attention computes where the prompt is shared, by count, since array masks are not fused on a GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from bench_step import Store
from mlx_lm.models import qwen3
from mlx_lm.tuner.utils import linear_to_lora_layers

from localdpo.data.store import Mixture
from localdpo.data.types import EncodedRow
from localdpo.model.forward import Forward, batch_arrays, needed_shape
from localdpo.recipe.schema import LossSection
from localdpo.train.data import DrawnRows, Rows
from localdpo.train.step import MAX_SHAPES, MAX_TRACES, Objective, StepArrays, TrainStep

ROWS, BATCH, SETTLED = 2_000, 8, 50
GROWTH_MB = 50
LAYERS, VOCABULARY = 4, 320


def spread(lengths: Callable[[np.random.Generator], tuple[int, int, int]], count: int = ROWS) -> Rows:
    """`count` pairs of random tokens; `lengths` draws those of prompt, chosen and rejected."""
    rng = np.random.default_rng(0)

    def row(number: int) -> EncodedRow:
        ids = [rng.integers(3, VOCABULARY, n).astype(np.int32) for n in lengths(rng)]
        return EncodedRow(number, ids[0], (ids[1], ids[2]))

    store = Store([row(number) for number in range(count)])
    return Rows(cast("Mixture", store), np.arange(count), pad=0)


def uniform(rng: np.random.Generator) -> tuple[int, int, int]:
    """Every length by itself."""
    return int(rng.integers(2, 97)), int(rng.integers(1, 65)), int(rng.integers(1, 65))


def chats(rng: np.random.Generator) -> tuple[int, int, int]:
    """Much like UltraFeedback cut at 1,024: long tails, and the responses to a prompt of similar length."""
    prompt = min(int(np.exp(rng.normal(4.6, 1.0))) + 20, 512)
    mean = rng.normal(5.3, 0.8)
    chosen, rejected = (min(int(np.exp(mean + rng.normal(0, 0.45))) + 2, 1024 - prompt) for _ in range(2))
    return prompt, chosen, rejected


@pytest.mark.parametrize("lengths", [uniform, chats])
def test_padding_by_rows_at_once(lengths: Any) -> None:
    rows = spread(lengths)
    drawn = DrawnRows(rows, batch_size=16, seed=0, steps=ROWS // 16)
    print(f"\n{lengths.__name__}: {ROWS:,} pairs, 16 a step, {MAX_SHAPES} shapes")
    print(f"{'rows at once':>14}{'padding':>10}{'least':>10}{'columns a step':>18}{'scores a step':>18}")
    for micro in (16, 8, 4, 2, 1):
        table = drawn.shapes(micro, shared=True, packed=True, most=MAX_SHAPES)
        cost, scores = table.computed * 16 // ROWS, table.scores * 16 // ROWS
        print(f"{micro:14}{table.padding:10.1%}{table.least_padding:10.1%}{cost:18,}{scores:18,}")


def resident_mb() -> float:
    asked = subprocess.run(
        ["ps", "-o", "rss=", "-p", str(os.getpid())], capture_output=True, text=True, check=True
    )
    return int(asked.stdout) / 1024


def take_steps() -> None:
    """An epoch of traced steps over `uniform`; print traces and resident memory. In a process of its own."""
    mx.random.seed(0)
    model = qwen3.Model(
        qwen3.ModelArgs(
            model_type="qwen3",
            hidden_size=64,
            num_hidden_layers=LAYERS,
            intermediate_size=96,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            rms_norm_eps=1e-5,
            vocab_size=VOCABULARY,
            rope_theta=1e4,
            max_position_embeddings=512,
            tie_word_embeddings=True,
        )
    )
    model.freeze()
    linear_to_lora_layers(model, -1, {"rank": 4, "scale": 10.0, "dropout": 0.0})
    rows = spread(uniform)
    steps = ROWS // BATCH
    table = DrawnRows(rows, batch_size=BATCH, seed=0, steps=steps).shapes(
        2, shared=True, packed=True, most=MAX_SHAPES
    )
    step = TrainStep(
        Forward(model),
        Objective(LossSection(type="orpo")),
        optim.AdamW(1e-5, bias_correction=True),
        max_grad_norm=1.0,
        compiled=True,
    )
    began, settled = time.perf_counter(), 0.0
    for number in range(steps):
        ready = []
        for batch in rows.training_batch(
            number, batch_size=BATCH, micro=2, seed=0, shared=True, packing=table.packing
        ):
            shape = table.of(needed_shape(batch, shared=True))
            assert shape is not None
            inputs = batch_arrays(batch, shared=True, shape=shape)
            ready.append(StepArrays.of(inputs, count=mx.array(float(BATCH))))
        step(ready, 1e-5)
        if number + 1 == SETTLED:
            settled = resident_mb()
    print(step.traces, settled, resident_mb(), time.perf_counter() - began)


def test_traces_and_resident_memory_of_2000_rows() -> None:
    program = "import localdpo.model, bench_shapes; bench_shapes.take_steps()"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    traces, settled, end, seconds = (float(word) for word in done.stdout.split())
    print(
        f"\n{ROWS:,} pairs, {BATCH} a step, {LAYERS} layers, traced: {traces:.0f} traces in {seconds:.0f} s"
    )
    print(f"resident after {SETTLED} steps {settled:.0f} MB, at the end {end:.0f} MB ({end - settled:+.0f})")
    assert traces <= MAX_TRACES
    assert end - settled < GROWTH_MB


def scores(context: int, response: int, responses: int = 2) -> dict[str, int]:
    """Attention scores that a pair takes in a layer, for each head: products of a query and a key."""
    whole, shared = context + response, responses * response * (context + response)
    return {
        "a line by segments": context * context + shared,
        "a line of one pair, masked": (context + responses * response) ** 2,
        "a line of two pairs, masked": 2 * (context + responses * response) ** 2,
        "whole rows": responses * whole * whole,
    }


def test_attention_scores_by_count() -> None:
    sizes = [(256, 256), (512, 256), (1024, 256), (2048, 256), (512, 512)]
    print("\nattention scores of a pair, in thousands a layer and head, by columns of prompt and response")
    print(f"{'':34}" + "".join(f"{f'{c:,} + {r}':>14}" for c, r in sizes))
    for name in scores(1, 1):
        print(f"{name:34}" + "".join(f"{scores(c, r)[name] / 1e3:14,.0f}" for c, r in sizes))


def test_a_causal_prompt_pass_on_this_device() -> None:
    """Whether the fused causal mask is faster than an array here, with its gradient; 1,024 columns."""
    queries, keys, values = (mx.random.normal((1, 8, 1024, 64)) for _ in range(3))
    row = mx.arange(1024)
    mask = row[:, None] >= row[None]

    def run(kind: Any) -> float:
        def total(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=0.125, mask=kind).sum()

        took = []
        for _ in range(3):
            began = time.perf_counter()
            mx.eval(mx.grad(total, (0, 1, 2))(queries, keys, values))
            took.append(time.perf_counter() - began)
        return min(took)

    print(f"\nattention with gradients, 1,024 columns: array {run(mask):.3f} s, causal {run('causal'):.3f} s")
