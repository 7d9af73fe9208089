"""Small random models in three precisions, each with its float32 twin on the CPU, and random batches.

All weights are drawn by NumPy and quantised on the CPU, so both twins hold the same numbers whatever the
device draws.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_map_with_path

from localdpo.data.batches import collate
from localdpo.data.types import Batch, EncodedRow
from localdpo.model import lora
from localdpo.model.arrays import named
from localdpo.model.forward import Forward, batch_arrays
from localdpo.model.load import to_float32

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
def on_cpu(*, compiled: bool) -> Iterator[None]:
    """While the context holds, MLX computes on the CPU and traces nothing. `compiled`: it may afterwards."""
    before = mx.default_device()
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


def twins(kind: Kind, family: str = "qwen3", seed: int = 0, *, half: bool = True) -> Twins:
    """Both with random adapters; to be made within `on_cpu`.

    `half`: a 4-bit base has 16-bit activations; float32 ones otherwise.
    """
    dtype = mx.float32 if kind == "float32" or (kind == "4-bit" and not half) else mx.bfloat16
    model, exact = (_built(kind, family, seed, dtype) for _ in range(2))
    # Scales and biases first: a dequantised bfloat16 weight would be rounded once more.
    exact.set_dtype(mx.float32)
    to_float32(exact)
    for one in (model, exact):
        one.freeze()
        keys = _ATTENTION if "num_experts" in FAMILIES[family] else None
        lora.attach(one, lora.LoraConfig("lora", -1, 4, 4.0, keys=keys), seed=seed)
        one.update(_drawn(one.trainable_parameters(), seed + 1, mx.float32))
        mx.eval(one.parameters())
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


def batch(
    pairs: int = 3, *, seed: int = 0, prompt: tuple[int, int] = (8, 120), response: tuple[int, int] = (10, 90)
) -> Batch:
    """Pairs of random tokens, lengths drawn from the closed ranges."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> np.ndarray:
        return rng.integers(1, VOCABULARY, rng.integers(low, high + 1)).astype(np.int32)

    rows = [EncodedRow(i, ids(*prompt), (ids(*response), ids(*response))) for i in range(pairs)]
    return collate(rows, 0, np.arange(pairs))


@dataclass(frozen=True)
class Measured:
    """Log-probabilities of the responses [K*P], and all gradients of a weighted sum of them in one vector."""

    logps: np.ndarray
    gradient: np.ndarray


def measurer(
    model: nn.Module, *, shared: bool, checkpoint: bool = False, compiled: bool = False
) -> Callable[[Batch], Measured]:
    """A function of a batch that measures it on one path, with the gradients that a step would take."""
    forward = Forward(model, shared=shared, checkpoint=checkpoint)

    def weighted(arrays: dict[str, mx.array], weights: mx.array) -> tuple[mx.array, mx.array]:
        logps = forward.logps(arrays, gradient=True)
        return (logps * weights).sum(), logps

    function: Any = nn.value_and_grad(model, weighted)
    if compiled:
        function = mx.compile(function, inputs=[model.state], outputs=[model.state])

    def measured(rows: Batch) -> Measured:
        weights = mx.array(np.random.default_rng(9).normal(size=len(rows.lengths)).astype(np.float32))
        (_, logps), grads = function(batch_arrays(rows, shared=shared), weights)
        mx.eval(logps, grads)
        flat = [np.array(g.astype(mx.float32)).ravel() for _, g in sorted(named(grads).items())]
        return Measured(np.array(logps, dtype=np.float64), np.concatenate(flat).astype(np.float64))

    return measured
