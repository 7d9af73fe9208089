"""Steps, checkpoints, a run of the worker and generation on the device."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import yaml

from localdpo.data.encode import encode_prompt
from localdpo.data.prompts import read_prompt_rows
from localdpo.data.types import Batch
from localdpo.model.arrays import named, random_key
from localdpo.model.forward import Forward, batch_arrays
from localdpo.model.generate import generate
from localdpo.model.load import build_model, load_base, to_float32
from localdpo.recipe.loss import LossSection
from localdpo.records.events import read_events
from localdpo.records.rundir import RunDir
from localdpo.train import checkpoint
from localdpo.train.selfcheck import CheckResult, Differs, compared
from localdpo.train.selfcheck.numbers import Kind, batch, gradient_bar, on_cpu, random_pairs, twins
from localdpo.train.step import Objective, StepArrays, StepResult, TrainStep

LEARNING_RATE = 1e-3
# Adam's first step divides a gradient by its own size, so where it is all but zero its sign decides: a few
# weights in a hundred thousand go the other way. Of 16-bit gradients, 2 % off, it is a few in a hundred.
UPDATE_BAR, HALF_UPDATE_BAR = 2e-2, 0.5
DEMO = "demo:model"
RECIPE: dict[str, Any] = {
    "model": DEMO,
    "adapter": "demo:sft",
    "data": {"train": "demo:preferences/train", "valid": "demo:preferences/valid"},
    "loss": {"type": "sigmoid", "beta": 0.1},
    "train": {"max_steps": 16, "batch_size": 8, "learning_rate": 5e-4, "warmup": 0, "max_length": 512},
    "eval": {"every": 16, "pairs": 32, "samples": 1, "max_tokens": 16, "kl_pairs": 0, "kl_samples": 0},
    "save": {"every": 16},
}
# On CUDA the first run builds kernels, some of which take a minute each.
RUN_SECONDS = 540
# Of held-out pairs after these steps. The CPU ranks 0.8 or more of them in float32.
RANKED = 0.65
# Nats below the likeliest token of the CPU in float32, a token: greedy decoding of 16-bit logits takes one of
# several that are as likely.
EXACT_CHOICE, HALF_CHOICE = 1e-3, 0.25


def optimizer_step(kind: Kind, *, compiled: bool) -> CheckResult:
    """A step of AdamW over two micro-batches, against one over the whole on the CPU."""
    is_float32 = kind == "float32"
    pair, rows = twins(kind), random_pairs(3)
    with on_cpu():
        before = _flat(pair.exact)
        exact = _step(pair.exact, [batch(rows)], compiled=False)
        wanted = _flat(pair.exact) - before
    own = _step(pair.model, [batch(rows[:2]), batch(rows[2:])], compiled=compiled)
    update = _flat(pair.model) - before
    bar = gradient_bar(is_float32=is_float32)
    moved = float(np.linalg.norm(update - wanted) / np.linalg.norm(wanted))
    return compared(
        {
            "loss": (abs(own.loss - exact.loss), bar),
            "gradient norm": (abs(own.grad_norm / exact.grad_norm - 1), bar),
            "update": (moved, UPDATE_BAR if is_float32 else HALF_UPDATE_BAR),
        }
    )


def _step(model: Any, parts: list[Batch], *, compiled: bool) -> StepResult:
    """One step over three pairs in these micro-batches."""
    taken = TrainStep(
        Forward(model, shared=True),
        Objective(LossSection()),
        optim.AdamW(LEARNING_RATE, bias_correction=True),
        max_grad_norm=1.0,
        compiled=compiled,
    )
    micro_batches = []
    for part in parts:
        reference, inputs = mx.array(-6.0 * part.lengths.astype(np.float32)), batch_arrays(part, shared=True)
        micro_batches.append(StepArrays.of(inputs, count=mx.array(3.0), reference_N=reference))
    return taken(micro_batches, LEARNING_RATE)


def _flat(model: Any) -> np.ndarray:
    weights = sorted(named(model.trainable_parameters()).items())
    return np.concatenate([np.array(w, dtype=np.float64).ravel() for _, w in weights])


def save_and_load(folder: Path) -> CheckResult:
    """A checkpoint of weights and moments that the device computed, read into another model."""
    pair, other = twins("bfloat16"), twins("bfloat16", seed=3)
    moved = optim.AdamW(LEARNING_RATE, bias_correction=True)
    moved.init(pair.model.trainable_parameters())
    moved.update(pair.model, pair.model.trainable_parameters())
    run = RunDir(folder)
    run.path.mkdir(parents=True)
    state = checkpoint.TrainState(step=1, random=random_key(), seconds=0.0)
    checkpoint.save(run, pair.model, moved, state, {"fine_tune_type": "lora"}, 1)
    newest, problems = checkpoint.newest_valid(run)
    if newest is None:
        raise Differs(f"the checkpoint is not valid: {'; '.join(problems) or 'none found'}")
    read = optim.AdamW(LEARNING_RATE, bias_correction=True)
    read.init(other.model.trainable_parameters())
    checkpoint.restore(newest, other.model, read)
    written = {**named(pair.model.trainable_parameters()), **named(moved.state)}
    back = {**named(other.model.trainable_parameters()), **named(read.state)}
    wrong = [name for name in written if not mx.array_equal(written[name], back[name]).item()]
    if wrong or written.keys() != back.keys():
        raise Differs(f"{len(wrong)} of {len(written)} arrays are others after loading, such as {wrong[:1]}")
    return CheckResult("ok", f"{len(written)} arrays the same to the bit")


def dpo_run(folder: Path) -> CheckResult:
    """A run of the worker on the bundled demo, which must learn to rank held-out pairs."""
    run = RunDir(folder)
    run.path.mkdir(parents=True)
    run.recipe.write_text(yaml.safe_dump(RECIPE))
    done = subprocess.run(
        [sys.executable, "-m", "localdpo.train", str(run.path)],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        env={**os.environ, "LOCALDPO_CACHE": str(folder / "cache")},
    )
    if done.returncode != 0:
        last_lines = " | ".join((done.stderr or done.stdout).strip().splitlines()[-4:])
        raise Differs(f"the worker ended with code {done.returncode}: {last_lines}")
    events = read_events(run.events)
    evaluations = [event.data["metrics"] for event in events if event.type == "eval"]
    steps = [event.data["metrics"] for event in events if event.type == "step"]
    name = "rewards/accuracies"
    first, last, ranked = steps[0]["loss"], steps[-1]["loss"], evaluations[-1][name]
    value = (
        f"loss {first:.4f} at first (ln 2 is {math.log(2):.4f}), {last:.4f} after {len(steps)} steps; "
        f"held-out reward accuracy {ranked:.2f}"
    )
    # The reference is scored by other kernels than a step on a GPU, in 16 bits if the model is.
    good = abs(first - math.log(2)) < 0.05 and ranked >= RANKED
    return CheckResult(
        "ok" if good else "differs", value, f"0.05 from ln 2 at most, accuracy {RANKED} at least"
    )


def generation() -> CheckResult:
    """Greedy answers of the demo model: each token as likely as the likeliest one on the CPU in float32."""
    base = load_base(DEMO)
    is_half = not all(w.dtype in (mx.float32, mx.uint32) for w in named(base.model.parameters()).values())
    rows = read_prompt_rows("demo:prompts/heldout", 6)
    prompts = [encode_prompt(base.tokenizer._tokenizer, row.prompt, "auto").tolist() for row in rows]
    answers = generate(base.model, base.tokenizer, prompts, max_tokens=24, batch=4)
    with on_cpu():
        exact, _ = build_model(DEMO)
        exact.set_dtype(mx.float32)
        to_float32(exact)
        gaps = []
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = mx.array([[*prompt, *answer.drawn]])
            logits = exact(ids[:, :-1])[0, len(prompt) - 1 :]
            chosen = mx.take_along_axis(logits, ids[0, len(prompt) :, None], axis=-1)[:, 0]
            gaps.append(float((logits.max(axis=-1) - chosen).max().item()))
    drawn = sum(len(answer.drawn) for answer in answers)
    gap, bar = max(gaps), HALF_CHOICE if is_half else EXACT_CHOICE
    finding = compared({f"{len(answers)} answers of {drawn} tokens, below the likeliest": (gap, bar)})
    return finding if drawn else CheckResult("differs", "no token was generated")
