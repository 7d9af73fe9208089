"""A training step against a straightforward one, on the same pairs: time as a ratio, and peak memory.

    make bench

The straightforward step is what a first DPO trainer looks like: a second copy of the model as the
reference, four forwards (chosen and rejected, policy and reference) over prompt and response, logits
of every position, no compilation. Ours is the trainer's own step with its reference scores on hand;
the reference pass that made them is timed too and spread over the steps of one epoch.

The two take turns on the same batches in one process, so a change of the machine's speed meets both.
Peak memory is measured in a process of each one's own.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx_lm.models import qwen3

from localdpo.data.store import Mixture
from localdpo.data.types import Batch, EncodedRow
from localdpo.model.backend import prepare
from localdpo.model.cpu import take_swiglu
from localdpo.model.forward import Forward, batch_arrays
from localdpo.model.lora import LoraConfig, attach
from localdpo.recipe.schema import LossSection, Recipe
from localdpo.train.data import Rows, micro_batch
from localdpo.train.fit import CPU_TOKENS, traces
from localdpo.train.step import Objective, StepArrays, TrainStep

PAIRS, PAIRS_A_STEP, VOCABULARY = 64, 4, 16_000
PROMPT, RESPONSE = (128, 384), (48, 192)
CONFIG = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "rope_theta": 1e6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
Step = Callable[[list[Batch]], float]


def model() -> nn.Module:
    """A random Qwen3-shaped model with LoRA of rank 8 on all seven projections."""
    mx.random.seed(0)
    built = qwen3.Model(qwen3.ModelArgs.from_dict(CONFIG))
    built.freeze()
    attach(built, LoraConfig("lora", -1, 8, 10.0), seed=0)
    take_swiglu(built)
    mx.eval(built.parameters())
    return built


class Store(list[EncodedRow]):
    """Encoded rows in memory, with what batches read of a mixture of one data set."""

    weights = (1.0,)

    def __init__(self, rows: list[EncodedRow]) -> None:
        super().__init__(rows)
        self.bounds = np.array([0, len(rows)])
        self.prompt_lengths = np.array([len(row.prompt) for row in rows])
        self.response_lengths = np.array([[len(ids) for ids in row.responses] for row in rows])


def pairs() -> Rows:
    """Pairs of random tokens, lengths uniform in the ranges."""
    rng = np.random.default_rng(0)

    def ids(span: tuple[int, int]) -> np.ndarray:
        return rng.integers(1, VOCABULARY, rng.integers(span[0], span[1] + 1)).astype(np.int32)

    store = Store([EncodedRow(i, ids(PROMPT), (ids(RESPONSE), ids(RESPONSE))) for i in range(PAIRS)])
    return Rows(cast("Mixture", store), np.arange(PAIRS), pad=0)


def batches(micro: int) -> list[list[Batch]]:
    """An epoch of batches, each as the trainer would cut it into micro-batches."""
    rows = pairs()
    steps = range(PAIRS // PAIRS_A_STEP)
    return [
        rows.training_batch(step, batch_size=PAIRS_A_STEP, micro=micro, seed=0, shared=True) for step in steps
    ]


def trainer_choice() -> tuple[int, bool]:
    """The micro-batch and whether steps are compiled, as the trainer decides them on this device."""
    backend = prepare()
    recipe = Recipe.model_validate(
        {"model": "none", "data": {"train": "none"}, "train": {"batch_size": PAIRS_A_STEP}}
    )
    micro = micro_batch(pairs(), PAIRS_A_STEP, CPU_TOKENS) if backend.is_cpu else PAIRS_A_STEP
    return micro, traces(recipe, backend)


def shared_prompt_step(compiled: bool) -> tuple[Step, Callable[[list[Batch]], None]]:
    """The trainer's step, and the reference pass over one batch that must come before it."""
    policy = model()
    forward = Forward(policy)
    step = TrainStep(
        forward,
        Objective(LossSection()),
        optim.AdamW(1e-5, bias_correction=True),
        max_grad_norm=1.0,
        compiled=compiled,
    )
    scores: dict[int, mx.array] = {}

    def reference(parts: list[Batch]) -> None:
        for part in parts:
            scores[int(part.indices[0])] = forward.score(part)

    def take(parts: list[Batch]) -> float:
        ready = []
        for part in parts:
            inputs, reference = batch_arrays(part, shared=True), scores[int(part.indices[0])]
            count = mx.array(float(PAIRS_A_STEP))
            ready.append(StepArrays.of(inputs, count=count, reference_N=reference))
        return step(ready, 1e-5).loss

    return take, reference


def straightforward_step() -> Step:
    """Four forwards with full logits, and a second model."""
    policy, reference = model(), model()
    optimizer = optim.AdamW(1e-5, bias_correction=True)

    def logps(network: nn.Module, tokens: mx.array, mask: mx.array) -> mx.array:
        logits = network(tokens[:, :-1]).astype(mx.float32)
        return (-nn.losses.cross_entropy(logits, tokens[:, 1:]) * mask[:, 1:]).sum(-1)

    def loss(sides: list[tuple[mx.array, mx.array]], references: list[mx.array]) -> mx.array:
        chosen, rejected = (logps(policy, *side) for side in sides)
        margin = (chosen - references[0]) - (rejected - references[1])
        return -nn.log_sigmoid(0.1 * margin).mean()

    value_and_grad = nn.value_and_grad(policy, loss)

    def take(parts: list[Batch]) -> float:
        sides = [padded(parts, 0), padded(parts, 1)]
        references = [mx.stop_gradient(logps(reference, *side)) for side in sides]
        value, grads = value_and_grad(sides, references)
        grads, _ = optim.clip_grad_norm(grads, 1.0)
        optimizer.update(policy, grads)
        mx.eval(value, policy.trainable_parameters(), optimizer.state)
        return float(value.item())

    return take


def padded(parts: list[Batch], side: int) -> tuple[mx.array, mx.array]:
    """Prompt and one response of every pair as right-padded rows, and the mask of scored tokens."""
    rows, starts = [], []
    for batch in parts:
        pairs_in = len(batch.indices)
        for i in range(pairs_in):
            row = side * pairs_in + i
            context = batch.context[i, batch.context_pad[i] :]
            rows.append(np.concatenate([context, batch.response[row, : batch.lengths[row] + 1]]))
            starts.append(len(context) + 1)
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int32)
    mask = np.zeros(tokens.shape, np.float32)
    for i, ids in enumerate(rows):
        tokens[i, : len(ids)] = ids
        mask[i, starts[i] : len(ids)] = 1.0
    return mx.array(tokens), mx.array(mask)


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def peak_gb(which: str) -> float:
    """Peak memory of an epoch of one variant, in a process of its own."""
    program = f"import localdpo.model, bench_step; bench_step.print_peak({which!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def test_step_time_and_memory() -> None:
    backend = prepare()
    micro, compiled = trainer_choice()
    epoch = batches(micro)
    ours, reference = shared_prompt_step(compiled)
    theirs = straightforward_step()
    pass_seconds = sum(seconds(lambda b=batch: reference(b)) for batch in epoch)
    assert abs(ours(epoch[0]) - theirs(epoch[0])) < 1e-5, "both steps start at ln 2"
    if compiled:  # every shape is traced once before it is timed
        for batch in epoch:
            ours(batch)
    timed = [(seconds(lambda b=batch: ours(b)), seconds(lambda b=batch: theirs(b))) for batch in epoch]
    mine, other = (statistics.median(column) for column in zip(*timed, strict=True))
    ratio = statistics.median(b / a for a, b in timed)
    how = "compiled" if compiled else "not compiled"
    print(f"\n{backend.device}, BLAS {backend.blas}; Qwen3 shape, LoRA rank 8, {PAIRS_A_STEP} pairs a step")
    print(f"(localdpo: {micro} at once, {how}, as it chooses here)")
    print(f"{'':34}{'s a step':>10}{'peak GB':>10}")
    print(f"{'localdpo, shared prompt':34}{mine:10.2f}{peak_gb('ours'):10.2f}")
    print(f"{'  its reference pass, once':34}{pass_seconds / len(epoch):10.2f}")
    print(f"{'straightforward, four forwards':34}{other:10.2f}{peak_gb('theirs'):10.2f}")
    print(f"ratio, step by step: {ratio:.2f}")


def print_peak(which: str) -> None:
    """Take steps of one variant and print the peak memory in GB. `localdpo` is to be imported first."""
    micro, compiled = trainer_choice()
    epoch = batches(micro)[:6]
    if which == "ours":
        step, reference = shared_prompt_step(compiled)
        for batch in epoch:
            reference(batch)
    else:
        step = straightforward_step()
    mx.reset_peak_memory()
    for batch in epoch:
        step(batch)
    print(mx.get_peak_memory() / 1e9)
