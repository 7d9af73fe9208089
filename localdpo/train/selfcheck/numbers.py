"""Log-probabilities and gradients of the device against those of the CPU in float32.

On small random models in three precisions, each with its float32 twin on the CPU, and random batches. All
weights are drawn by NumPy and quantised on the CPU, so both twins hold the same numbers whatever the device
draws.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map_with_path

from localdpo.data.batches import collate
from localdpo.data.types import Batch, EncodedRow
from localdpo.model import lora
from localdpo.model.arrays import float_types, named
from localdpo.model.backend import can_compile, device_name, may_use_tf32
from localdpo.model.forward import Forward, ForwardArrays, batch_arrays
from localdpo.model.load import to_float32
from localdpo.train.assemble import tolerance
from localdpo.train.selfcheck import CheckResult, compared

Kind = Literal["float32", "bfloat16", "4-bit"]
KINDS: Final[tuple[Kind, ...]] = ("float32", "bfloat16", "4-bit")
VOCABULARY: Final = 384
# Heads of 64: a size that fused attention kernels take.
SHAPE: Final[dict[str, Any]] = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "rope_theta": 10000.0,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
_EXPERTS: Final[dict[str, Any]] = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 128,
    "norm_topk_prob": True,
}
# Families whose attention is not like qwen3's: no norms of the heads, soft-capped scores, windows, sinks.
FAMILIES: Final[dict[str, dict[str, Any]]] = {
    "qwen3": {},
    "llama": {"tie_word_embeddings": False},
    "gemma2": {
        "query_pre_attn_scalar": 64.0,
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 10.0,
        "sliding_window": 32,
    },
    "gemma3_text": {"sliding_window": 32, "sliding_window_pattern": 2, "query_pre_attn_scalar": 64},
    "gpt_oss": {
        **_EXPERTS,
        "sliding_window": 32,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "qwen3_moe": _EXPERTS,
}
# Adapters on attention alone, where the experts are no linear layers.
_ATTENTION: Final = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")


@contextmanager
def on_cpu() -> Iterator[None]:
    """While the context holds, MLX computes on the CPU and traces nothing; not within itself."""
    before, compiled = mx.default_device(), can_compile()
    mx.set_default_device(mx.cpu)
    mx.disable_compile()
    try:
        yield
    finally:
        mx.set_default_device(before)
        if compiled:
            mx.enable_compile()


@dataclass(frozen=True)
class Twins:
    """A model as the device trains it, and its float32 twin for the CPU: dense, with the same weights."""

    model: nn.Module
    exact: nn.Module


def twins(kind: Kind, family: str = "qwen3", seed: int = 0) -> Twins:
    """Both with random adapters."""
    # MLX's CPU kernels add up 16-bit quantised products in 16 bits, and training never uses them.
    exact_activations = kind == "float32" or (kind == "4-bit" and device_name() == "cpu")
    dtype = mx.float32 if exact_activations else mx.bfloat16
    with on_cpu():
        model, exact = (_built(kind, family, seed, dtype) for _ in range(2))
        # Scales and biases first: a dequantised bfloat16 weight would be rounded once more.
        exact.set_dtype(mx.float32)
        to_float32(exact)
        keys = _ATTENTION if "num_experts" in FAMILIES[family] else None
        for twin in (model, exact):
            twin.freeze()
            lora.attach(twin, lora.LoraConfig("lora", -1, 4, 4.0, keys=keys), seed=seed)
            twin.update(_drawn(twin.trainable_parameters(), seed + 1, mx.float32))
            mx.eval(twin.parameters())
    return Twins(model, exact)


def _built(kind: Kind, family: str, seed: int, dtype: mx.Dtype) -> nn.Module:
    config = {**SHAPE, "model_type": family, **FAMILIES[family]}
    module = importlib.import_module(f"mlx_lm.models.{family}")
    model: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    model.update(_drawn(model.parameters(), seed, dtype))
    if kind == "4-bit":
        nn.quantize(model, group_size=64, bits=4)
    model.eval()
    mx.eval(model.parameters())
    return model


def _drawn(tree: Any, seed: int, dtype: mx.Dtype) -> Any:
    """Random weights in the place of a model's: matrices that keep the scale of what they multiply."""
    rng = np.random.default_rng(seed)

    def draw(path: str, old: mx.array) -> mx.array:
        if path.endswith("lora_b"):
            values = 0.05 * rng.normal(size=old.shape)
        elif path.endswith("lora_a") or old.ndim > 1:
            columns = old.shape[0] if path.endswith("lora_a") else old.shape[-1]
            values = rng.normal(size=old.shape) / np.sqrt(columns)
        else:
            values = (0.0 if path.endswith("bias") else 1.0) + 0.1 * rng.normal(size=old.shape)
        return mx.array(values.astype(np.float32)).astype(dtype)

    return tree_map_with_path(draw, tree)


def random_pairs(
    pairs: int = 3, *, seed: int = 0, prompt: tuple[int, int] = (8, 120), response: tuple[int, int] = (10, 90)
) -> list[EncodedRow]:
    """Pairs of random tokens, lengths drawn from the closed ranges."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> np.ndarray:
        return rng.integers(1, VOCABULARY, rng.integers(low, high + 1)).astype(np.int32)

    return [EncodedRow(i, ids(*prompt), (ids(*response), ids(*response))) for i in range(pairs)]


def batch(rows: list[EncodedRow]) -> Batch:
    return collate(rows, 0, np.arange(len(rows)))


@dataclass(frozen=True)
class LogpsAndGradient:
    """Log-probabilities of the responses [K*P], and all gradients of a weighted sum of them in one vector."""

    logps: np.ndarray
    gradient: np.ndarray


def measurer(
    model: nn.Module, *, shared: bool, checkpoint: bool = False, compiled: bool = False
) -> Callable[[Batch], LogpsAndGradient]:
    """A function of a batch that measures it on one path, with the gradients that a step would take."""
    forward = Forward(model, shared=shared, checkpoint=checkpoint)

    def weighted(arrays: ForwardArrays, weights: mx.array) -> tuple[mx.array, mx.array]:
        logps = forward.logps(arrays, gradient=True)
        return (logps * weights).sum(), logps

    function: Any = nn.value_and_grad(model, weighted)

    def traced(tree: dict[str, Any], weights: mx.array) -> Any:
        return function(ForwardArrays(**tree), weights)

    if compiled:
        traced = mx.compile(traced, inputs=[model.state], outputs=[model.state])

    def measured(rows: Batch) -> LogpsAndGradient:
        weights = mx.array(np.random.default_rng(9).normal(size=len(rows.lengths)).astype(np.float32))
        arrays = batch_arrays(rows, shared=shared)
        (_, logps), grads = traced(arrays.tree(), weights) if compiled else function(arrays, weights)
        mx.eval(logps, grads)
        flat = [np.array(g.astype(mx.float32)).ravel() for _, g in sorted(named(grads).items())]
        return LogpsAndGradient(np.array(logps, dtype=np.float64), np.concatenate(flat).astype(np.float64))

    return measured


# Distances of gradients, relative to their norm. float32: sums in another order on the CPU stay below 3e-5
# on models of all families; a GPU adds in yet another. TF32 has 10 bits of mantissa, bfloat16 7: on small
# models on the CPU bfloat16 gradients are 1 to 3 % off on either path. One that is wrong is off by 0.1 to 1.
EXACT_GRADIENT, TF32_GRADIENT, HALF_GRADIENT = 1e-4, 1e-2, 0.06

# `tolerance` is the distance of two orders of one 16-bit computation; from float32 it is up to twice that.
FROM_EXACT = 2.5


# Twins that nothing trains.
_untouched = lru_cache(twins)


@lru_cache
def _truth(kind: Kind, family: str, tokens: int | None) -> LogpsAndGradient:
    """By the plain path, which is the model as mlx-lm runs it, without tracing or checkpoints."""
    exact = _untouched(kind, family).exact
    with on_cpu():
        return measurer(exact, shared=False)(rows_of(tokens))


def compare(
    kind: Kind,
    *,
    shared: bool,
    checkpoint: bool = False,
    compiled: bool = False,
    family: str = "qwen3",
    tokens: int | None = None,
) -> CheckResult:
    """One way of computing against the truth. `tokens`: answers of so many; None: of spread lengths."""
    model, rows = _untouched(kind, family).model, rows_of(tokens)
    truth = _truth(kind, family, tokens)
    measured = measurer(model, shared=shared, checkpoint=checkpoint, compiled=compiled)
    own = measured(rows)
    is_float32 = float_types(model) == {mx.float32}
    bars = tolerance(truth.logps, rows.lengths, Forward(model, shared=shared))
    bars *= 1.0 if is_float32 else FROM_EXACT
    gaps = np.abs(own.logps - truth.logps)
    worst = int(np.argmax(gaps / bars))
    gap = float(np.linalg.norm(own.gradient - truth.gradient) / np.linalg.norm(truth.gradient))
    result = compared(
        {
            "log-probability": (float(gaps[worst]), float(bars[worst])),
            "gradient": (gap, gradient_bar(is_float32=is_float32)),
        }
    )
    if device_name() == "cpu":
        return result
    # The time of a second call, whose kernels are there already.
    began = time.perf_counter()
    measured(rows)
    return replace(result, value=f"{result.value}; again {time.perf_counter() - began:.3f} s")


def short(kind: Kind, *, shared: bool, checkpoint: bool) -> CheckResult:
    """Answers of 1 to 9 tokens: the worst of nine comparisons."""
    results: dict[int, CheckResult] = {}
    for tokens in range(1, 10):
        try:
            results[tokens] = compare(kind, shared=shared, checkpoint=checkpoint, tokens=tokens)
        except (RuntimeError, ValueError) as error:
            # What MLX raises for a shape that a kernel does not take.
            results[tokens] = CheckResult("error", f"{type(error).__name__}: {error}")
    bad = [tokens for tokens, result in results.items() if result.state != "ok"]
    if not bad:
        return replace(results[9], value=f"1 to 9 tokens; of 9: {results[9].value}")
    first, lengths = results[bad[0]], ", ".join(map(str, bad))
    return replace(first, value=f"not with answers of {lengths} tokens; {bad[0]}: {first.value}")


def runs(kind: Kind, *, shared: bool, family: str) -> CheckResult:
    """Whether there are numbers at all, where rounding decides too much to compare them."""
    own = measurer(_untouched(kind, family).model, shared=shared, checkpoint=True)(rows_of(None))
    finite = bool(np.isfinite(own.logps).all() and np.isfinite(own.gradient).all())
    return CheckResult("ok" if finite else "differs", "finite" if finite else "not finite")


def repeated(kind: Kind) -> CheckResult:
    """Whether the same gradients come out twice, to the bit."""
    model, rows = _untouched(kind, "qwen3").model, rows_of(None)
    first, second = (measurer(model, shared=True)(rows) for _ in range(2))
    gap = float(np.abs(first.gradient - second.gradient).max())
    return CheckResult("info", "the same to the bit" if gap == 0 else f"up to {gap:.2g} apart")


def gradient_bar(*, is_float32: bool) -> float:
    """Of the distance between two vectors of gradients, relative to the norm."""
    if not is_float32:
        return HALF_GRADIENT
    return TF32_GRADIENT if may_use_tf32() else EXACT_GRADIENT


@lru_cache
def rows_of(tokens: int | None) -> Batch:
    """Three pairs of spread lengths, or two with answers of `tokens`."""
    if tokens is None:
        return batch(random_pairs())
    return batch(random_pairs(2, seed=tokens, prompt=(1, 40), response=(tokens, tokens)))
