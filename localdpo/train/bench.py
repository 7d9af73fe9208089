"""How fast models of known shapes train on this machine: random weights and pairs, the trainer's own step.

Everything is made here and nothing is fetched: a model folder with random weights, the demo's tokenizer, and
pairs of random phrases. What is measured is a run's session (see `assemble`): the reference pass, steps with
their updates, and generation, one after the other in one process.

The share of the device's matmul rate divides the operations that a step needs, counted product by product
(see `memory.operations`), by what square products of the same type reach in the same process.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from localdpo.core.atomic import require_space, write_text
from localdpo.core.errors import UserError
from localdpo.core.names import BUNDLE
from localdpo.core.text import aligned
from localdpo.model import lora
from localdpo.model.arrays import float_types
from localdpo.model.backend import Backend, device_name, give_back_memory, memory_limit
from localdpo.model.forward import lengths_of
from localdpo.model.generate import generate
from localdpo.model.memory import BatchShape, model_shape, operations
from localdpo.recipe.schema import Recipe
from localdpo.train.assemble import Note, Session, assemble
from localdpo.train.fit import size
from localdpo.train.selfcheck.probes import matmul_rate
from localdpo.train.step import make_optimizer

GB: Final = 1e9
# What is written beside the weights: the tokenizer's files, pairs, and caches of their tokens.
FILES_BYTES: Final = 2**22
# What all of them share. Random weights have no end of their answers, so token 2 is as good as any.
_COMMON: Final[dict[str, Any]] = {"rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "eos_token_id": 2}


def _shape(kind: str, tied: bool, *sizes: int) -> dict[str, Any]:
    names = [
        *("hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads"),
        *("num_key_value_heads", "head_dim", "vocab_size"),
    ]
    config = dict(zip(names, sizes, strict=True))
    return _COMMON | config | {"model_type": kind, "tie_word_embeddings": tied, "rope_theta": 1e6}


# The sizes of SmolLM2-135M, Qwen3-0.6B, Llama-3.2-1B and Qwen3-8B, as their config.json has them.
SHAPES: Final[dict[str, dict[str, Any]]] = {
    "tiny": _shape("qwen3", True, 256, 6, 768, 4, 2, 64, 16_000),
    "135m": _shape("llama", True, 576, 30, 1536, 9, 3, 64, 49_152),
    "0.6b": _shape("qwen3", True, 1024, 28, 3072, 16, 8, 128, 151_936),
    "1b": _shape("llama", True, 2048, 16, 8192, 32, 8, 64, 128_256),
    "8b": _shape("qwen3", False, 4096, 36, 12_288, 32, 8, 128, 151_936),
}
PHRASES: Final = (
    "the report says that login is slow in Tokyo",
    "and email fails",
    "for many customers",
    "since noon",
)


@dataclass(frozen=True)
class Workload:
    """What is trained: pairs a step, mean tokens of prompts and of responses, steps, tokens to generate."""

    batch_size: int = 8
    prompt_tokens: int = 256
    response_tokens: int = 128
    steps: int = 10
    generated: int = 64


@dataclass(frozen=True)
class Way:
    """How a step is computed; None: as the trainer decides for this machine."""

    checkpoint: bool | None = None
    compiled: bool | None = None

    def options(self) -> dict[str, Any]:
        given = {"gradient_checkpointing": self.checkpoint, "compile": self.compiled}
        return {name: value for name, value in given.items() if value is not None}


AS_DECIDED: Final = Way()
EVERY_WAY: Final = (Way(False, False), Way(False, True), Way(True, False), Way(True, True))


@dataclass(frozen=True)
class BenchResult:
    """What was measured of a shape. Times in seconds, memory in GB (1e9 bytes), medians where several.

    Attributes:
        way: how the step was computed.
        first_step, step: of a step of `pairs` pairs, its update included; `step` is the median of the second
            half of the steps.
        step_tokens: tokens of a step, each prompt once; tokens_per_second: over the second half.
        reference: scoring the pairs of a step under the reference.
        generated_per_second: tokens of one answer, and of eight answers at once.
        active, cache, peak: memory after the steps, and at their peak; estimate: the planner's, None where
            the model's config.json tells too little.
        teraflops: operations of a step, counted, by its time; matmul: the rate of square products.
        loss: of each step.
    """

    shape: str
    bits: int
    way: str
    pairs: int
    step_tokens: int
    first_step: float
    step: float
    tokens_per_second: float
    reference: float
    generated_per_second: tuple[float, float]
    active: float
    cache: float
    peak: float
    estimate: float | None
    teraflops: float
    matmul: float
    loss: tuple[float, ...]

    @property
    def share(self) -> float:
        """Of the device's matmul rate."""
        return self.teraflops / self.matmul

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"share": self.share}


def measure(
    name: str,
    folder: Path,
    backend: Backend,
    *,
    bits: int,
    workload: Workload,
    ways: Sequence[Way] = (AS_DECIDED,),
    note: Note,
) -> Iterator[BenchResult]:
    """Make the model of a shape in `folder` and measure it, once for each way.

    Args:
        bits: 4 (groups of 64, bfloat16 scales) or 16 (bfloat16). On the CPU weights are loaded as float32.
        note: called with each line that a person should read: also where a step does not fit into this
            machine's memory, which leaves that way out.

    Raises UserError: the model does not fit into this machine's memory, or onto its disk.
    """
    model = make_model(folder / "model", SHAPES[name], bits)
    pairs = make_pairs(folder / "pairs.jsonl", workload)
    give_back_memory()
    matmul = matmul_rate(mx.float32 if backend.is_cpu else mx.bfloat16)[0] / 1e12
    for number, way in enumerate(ways):
        recipe = Recipe.model_validate(
            {
                "model": str(model),
                "data": {"train": str(pairs), "valid": str(pairs)},
                "train": {
                    "max_steps": workload.steps,
                    "batch_size": workload.batch_size,
                    "max_length": 4 * (workload.prompt_tokens + workload.response_tokens),
                    **way.options(),
                },
                "eval": {"pairs": 1, "samples": 0, "kl_pairs": 0, "kl_samples": 0},
            }
        )
        try:
            with _cache_in(folder / f"cache-{number}"):
                session = assemble(recipe, backend, note)
        except UserError as error:
            # Another way may take less memory.
            options = (f", {option}={str(value).lower()}" for option, value in way.options().items())
            note(f"{name}{''.join(options)}: not measured: {error.message}")
            continue
        yield _measured(session, workload, matmul=matmul, shape=name, bits=bits)
        del session
        give_back_memory()


@contextmanager
def _cache_in(folder: Path) -> Iterator[None]:
    """Caches of tokens and reference scores in a folder of their own, so that both are made."""
    before = os.environ.get("LOCALDPO_CACHE")
    os.environ["LOCALDPO_CACHE"] = str(folder)
    try:
        yield
    finally:
        del os.environ["LOCALDPO_CACHE"]
        if before is not None:
            os.environ["LOCALDPO_CACHE"] = before


def _measured(session: Session, workload: Workload, *, matmul: float, shape: str, bits: int) -> BenchResult:
    recipe, model = session.recipe, session.base.model
    scores = session.train_scores
    assert scores is not None
    began = time.perf_counter()
    with lora.use(model, session.reference):
        scores.fill(session.forward, lambda done, total: True)
    reference = (time.perf_counter() - began) / workload.steps
    step = session.train_step(make_optimizer(recipe.train))
    mx.clear_cache()
    mx.reset_peak_memory()
    times, tokens, losses, counted = [], [], [], 0
    sizes = model_shape(Path(recipe.model), cpu=session.backend.is_cpu)
    rank = session.config.rank
    for number in range(workload.steps):
        began = time.perf_counter()
        batches = session.feed.batches(number)
        result = step(session.feed.arrays(batches), session.schedule.learning_rate(number))
        times.append(time.perf_counter() - began)
        losses.append(result.loss)
        lines = [BatchShape.line(*lengths_of(batch)) for batch in batches]
        tokens.append(sum(line.tokens for line in lines))
        counted = sum(
            operations(sizes, line, rank=rank, checkpoint=session.forward.checkpoint) for line in lines
        )
    late = slice(workload.steps // 2, None)
    active, cache, peak = (
        amount / GB for amount in (mx.get_active_memory(), mx.get_cache_memory(), mx.get_peak_memory())
    )
    return BenchResult(
        shape=shape,
        bits=32 if float_types(model) == {mx.float32} and session.backend.is_cpu else bits,
        way=("traced" if session.compiled else "eager") + ", checkpointed" * session.forward.checkpoint,
        pairs=workload.batch_size,
        step_tokens=round(statistics.mean(tokens)),
        first_step=times[0],
        step=statistics.median(times[late]),
        tokens_per_second=sum(tokens[late]) / sum(times[late]),
        reference=reference,
        generated_per_second=(_generation(session, workload, 1), _generation(session, workload, 8)),
        active=active,
        cache=cache,
        peak=peak,
        estimate=None if session.layout.memory is None else session.layout.memory.total / GB,
        teraflops=counted / times[-1] / 1e12,
        matmul=matmul,
        loss=tuple(losses),
    )


def _generation(session: Session, workload: Workload, answers: int) -> float:
    """Tokens a second of so many answers at once, prompts included."""
    rows = session.train
    prompts = [rows.store[i % len(rows)].prompt.tolist() for i in range(answers)]
    settings: dict[str, Any] = {"max_tokens": workload.generated, "temperature": 1.0}
    generate(session.base.model, session.base.tokenizer, prompts, **settings | {"max_tokens": 2})
    began = time.perf_counter()
    made = generate(session.base.model, session.base.tokenizer, prompts, **settings)
    return sum(len(answer.drawn) for answer in made) / (time.perf_counter() - began)


def make_model(folder: Path, config: dict[str, Any], bits: int) -> Path:
    """A folder with random weights of this shape and the demo's tokenizer.

    Raises UserError: the disk or the memory has no room for it; nothing is drawn then.
    """
    mx.random.seed(0)
    kind = importlib.import_module(f"mlx_lm.models.{config['model_type']}")
    model: nn.Module = kind.Model(kind.ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    if bits < 16:
        nn.quantize(model, group_size=64, bits=bits)
        config = config | {"quantization": {"group_size": 64, "bits": bits}}
    weights = dict(tree_flatten(model.parameters()))
    needed, limit = sum(array.nbytes for array in weights.values()), memory_limit(device_name())
    if needed > limit:
        raise UserError(f"memory: the weights take about {size(needed)}, but there are {size(limit)}")
    require_space(folder, needed + FILES_BYTES)
    folder.mkdir(parents=True)
    for file in [*(BUNDLE / "model").glob("token*"), *(BUNDLE / "model").glob("*.jinja")]:
        shutil.copy(file, folder)
    # Weights are random numbers yet to be drawn: block by block, no more than one is alive in full.
    for block in model.layers:
        mx.eval(block.parameters())
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_pairs(file: Path, workload: Workload) -> Path:
    """Random pairs whose lengths spread from half to one and a half times the mean."""
    rng = np.random.default_rng(0)
    # Tokens of a phrase in the demo's tokenizer, about.
    phrase = 6

    def text(tokens: int) -> str:
        return " ".join(rng.choice(PHRASES, max(1, int(tokens * rng.uniform(0.5, 1.5) / phrase))))

    prompt, response = workload.prompt_tokens, workload.response_tokens
    rows = [
        {"prompt": f"{n} {text(prompt)}", "chosen": text(response), "rejected": text(response)}
        for n in range(workload.steps * workload.batch_size)
    ]
    write_text(file, "".join(json.dumps(row) + "\n" for row in rows))
    return file


def table(results: list[BenchResult]) -> list[str]:
    """A line for each result, under a heading; columns as wide as what is in them."""
    rows = [
        (
            *("shape", "bits", "way", "tokens", "first s", "step s", "tok/s", "ref s", "gen tok/s"),
            *("peak GB", "estimate", "active", "cache", "matmul"),
        )
    ]
    for r in results:
        generated = "/".join(
            f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}" for rate in r.generated_per_second
        )
        estimate = "-" if r.estimate is None else f"{r.estimate:.3g}"
        times = (f"{r.first_step:.3g}", f"{r.step:.3g}", f"{r.tokens_per_second:,.0f}", f"{r.reference:.3g}")
        memory = (f"{r.peak:.3g}", estimate, f"{r.active:.3g}", f"{r.cache:.2g}")
        rows.append(
            (r.shape, str(r.bits), r.way, f"{r.step_tokens:,}", *times, generated, *memory, f"{r.share:.0%}")
        )
    return aligned(rows, {1, *range(3, len(rows[0]))})
