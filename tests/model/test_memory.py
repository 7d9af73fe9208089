"""The estimate against what real steps took, and against what can be counted by hand."""

from __future__ import annotations

import gc
import inspect
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models import activations, llama
from model_families import BASE, HYBRID, tiny
from random_batches import random_rows

from localdpo.data.batches import Shape, bucket, collate
from localdpo.model import cpu, lora
from localdpo.model.forward import Forward, batch_arrays
from localdpo.model.head import CHUNK_BYTES
from localdpo.model.load import load_base
from localdpo.model.memory import BatchShape, MemoryEstimate, ModelShape, estimate, kept_gates, model_shape

pytestmark = pytest.mark.slow

SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 500,
}


@dataclass(frozen=True)
class Case:
    """A model and the lengths of its rows."""

    name: str
    rows: int
    prompt: int
    response: int
    checkpoint: bool
    sizes: dict[str, Any]
    family: str = "llama"
    dtype: mx.Dtype = mx.float32
    bits: int | None = None
    swiglu: Any = activations.swiglu


CASES = [
    Case("wide MLP, SwiGLU of x86", 2, 96, 64, False, {"intermediate_size": 1024}, swiglu=cpu.swiglu),
    Case("even", 4, 128, 64, False, {}),
    Case("even, recomputed", 4, 128, 64, True, {}),
    Case("wide heads as in Qwen3 0.6B", 2, 128, 64, False, {"head_dim": 64}, "qwen3"),
    Case("wide heads, recomputed", 2, 128, 96, True, {"head_dim": 64}, "qwen3"),
    Case("long prompts", 2, 384, 48, False, {"num_hidden_layers": 3}),
    Case("long responses, recomputed", 2, 64, 160, True, {"num_hidden_layers": 6}),
    Case("long responses, recomputed, SwiGLU of x86", 2, 64, 160, True, {}, swiglu=cpu.swiglu),
    Case("wide MLP", 2, 96, 64, False, {"intermediate_size": 1024, "num_hidden_layers": 3}),
    Case("16,000 words", 4, 64, 64, False, {"vocab_size": 16_000}),
    Case("150,000 words, recomputed", 1, 64, 96, True, {"vocab_size": 150_000, "hidden_size": 64}),
    Case("bfloat16", 1, 64, 80, False, {"vocab_size": 162, "num_hidden_layers": 3}, "llama", mx.bfloat16),
    Case("bfloat16, recomputed", 1, 64, 64, True, {"num_hidden_layers": 4}, "qwen3", mx.bfloat16),
    Case("4-bit", 1, 64, 48, False, {"num_hidden_layers": 3}, "qwen3", mx.bfloat16, 4),
]


def line(rows: int, prompt: int, response: int) -> BatchShape:
    """Rows of one length, each of two responses, as they are laid out where nothing is traced."""
    return BatchShape.line(np.full(rows, prompt - 1), np.full((2, rows), response))


def saved(folder: Path, model: nn.Module, **config: Any) -> Path:
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def measured(
    model: nn.Module, rows: int, prompt: int, response: int, *, checkpoint: bool, shared: bool = True
) -> int:
    """Bytes at the peak of a step's last micro-batch and its update, without what other tests hold."""
    batch = collate(
        random_rows(rows, seed=0, prompt=(prompt, prompt), response=(response, response)), 0, np.arange(rows)
    )
    forward = Forward(model, checkpoint=checkpoint)
    optimizer = optim.AdamW(1e-4)
    optimizer.init(model.trainable_parameters())
    arrays = batch_arrays(batch, shared=shared)
    weights = sum(w.nbytes for _, w in tree_flatten(model.parameters()))
    before = tree_map(mx.zeros_like, model.trainable_parameters())
    mx.eval(model.parameters(), optimizer.state, arrays, before)
    gc.collect()
    mx.clear_cache()
    mine = weights + sum(a.nbytes for _, a in tree_flatten([optimizer.state, before]))
    outside = mx.get_active_memory() - mine
    mx.reset_peak_memory()
    _, grads = nn.value_and_grad(model, lambda: forward.logps(arrays, gradient=True).sum())()
    optimizer.update(model, tree_map(mx.add, before, grads))
    mx.eval(model.parameters(), optimizer.state)
    return mx.get_peak_memory() - outside


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.every(8)
def test_a_real_step_takes_within_a_tenth_of_the_estimate(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activations, scores, MLP and logits dominate in turn."""
    sizes = SIZES | case.sizes
    model = tiny(case.family, **sizes)
    monkeypatch.setattr(inspect.getmodule(type(model)), "swiglu", case.swiglu)
    model.set_dtype(case.dtype)
    if case.bits is not None:
        nn.quantize(model, group_size=32, bits=case.bits)
    quantised = {"quantization": {"bits": case.bits}} if case.bits else {}
    shape = model_shape(saved(tmp_path, model, model_type=case.family, **sizes, **quantised), cpu=False)
    model.freeze()
    lora.attach(model, lora.LoraConfig("lora", -1, 8, 8.0), seed=0)
    found = estimate(
        # Norms are those of the CPU backend here.
        replace(shape, norm_width=4),
        line(case.rows, case.prompt, case.response),
        adapter=sum(w.nbytes for _, w in tree_flatten(model.trainable_parameters())),
        adapted=shape.blocks,
        checkpoint=case.checkpoint,
        chunk_bytes=CHUNK_BYTES["cpu"],
        gates=kept_gates(model),
    )
    peak = measured(model, case.rows, case.prompt, case.response, checkpoint=case.checkpoint)
    assert found.total == pytest.approx(peak, rel=0.1), f"{found.total / peak:.3f}"


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.every(2)
def test_a_recurrent_layer_keeps_a_state_of_every_token(checkpoint: bool, tmp_path: Path) -> None:
    heads = {"linear_key_head_dim": 64, "linear_value_head_dim": 64}
    model = tiny("qwen3_next", **heads)
    shape = model_shape(saved(tmp_path, model, model_type="qwen3_next", **BASE, **HYBRID | heads), cpu=False)
    assert (shape.recurrent, shape.state) == (2, 4 * 64 * 64)
    model.freeze()
    lora.attach(model, lora.LoraConfig("lora", -1, 8, 8.0), seed=0)
    model.train()  # outside of training MLX takes a kernel on Metal
    found = estimate(
        replace(shape, norm_width=4),
        BatchShape.plain(Shape(1, bucket(95), 64), 2),
        adapter=sum(w.nbytes for _, w in tree_flatten(model.trainable_parameters())),
        adapted=shape.blocks,
        checkpoint=checkpoint,
        chunk_bytes=CHUNK_BYTES["cpu"],
    )
    peak = measured(model, 1, 64, 32, checkpoint=checkpoint, shared=False)
    assert found.total == pytest.approx(peak, rel=0.15), f"{found.total / peak:.3f}"
    full = replace(shape, recurrent=0, state=0)
    batch = BatchShape.plain(Shape(1, 96, 64), 2)
    rest = estimate(full, batch, adapter=0, adapted=4, checkpoint=checkpoint, chunk_bytes=CHUNK_BYTES["cpu"])
    assert found.total > 2 * rest.total


def of(
    shape: ModelShape, rows: int = 4, prompt: int = 65, response: int = 32, **changes: Any
) -> MemoryEstimate:
    settings: dict[str, Any] = {"adapter": 10_000, "adapted": shape.blocks, "checkpoint": False} | changes
    plain = BatchShape.plain(Shape(rows, prompt - 1 + response, 2 * rows * response), 2)
    batch = line(rows, prompt, response) if settings.pop("shared", True) else plain
    return estimate(shape, batch, chunk_bytes=CHUNK_BYTES["cpu"], **settings)


def test_weights_are_counted_exactly(tiny_model: Path, quantised_model: Path) -> None:
    def bytes_of(folder: Path) -> int:
        return sum(w.nbytes for _, w in tree_flatten(load_base(str(folder)).model.parameters()))

    assert model_shape(tiny_model, cpu=True).weights == bytes_of(tiny_model)
    loaded = model_shape(quantised_model, cpu=True)
    stored = sum(w.nbytes for w in mx.load(str(quantised_model / "model.safetensors")).values())
    assert (loaded.weights, loaded.stored) == (bytes_of(quantised_model), stored)
    assert model_shape(quantised_model, cpu=False).weights == stored < loaded.weights


def test_more_of_anything_takes_more_and_checkpointing_less(tiny_model: Path) -> None:
    shape = model_shape(tiny_model, cpu=True)
    base = of(shape)
    for more in (
        of(shape, adapter=20_000),
        of(shape, prompt=129),
        of(shape, response=64),
        of(shape, rows=8),
        of(shape, dora=True),
        of(shape, shared=False),
    ):
        assert more.total > base.total
    assert of(shape, adapted=1).total < base.total
    assert of(shape, checkpoint=True).activations < base.activations
    assert base.total == base.weights + base.adapter + base.activations + base.working


def test_a_multimodal_configuration_is_read_at_its_text_part(tmp_path: Path) -> None:
    plain = saved(tmp_path, tiny("llama", **SIZES), **SIZES)
    expected = model_shape(plain, cpu=True)
    (plain / "config.json").write_text(json.dumps({"text_config": SIZES}))
    assert model_shape(plain, cpu=True) == expected


def test_an_output_of_swiglu_that_an_adapter_multiplies_again_is_not_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def gates(kind: str = "lora", keys: tuple[str, ...] | None = None) -> int:
        model = tiny("llama")
        model.freeze()
        lora.attach(model, lora.LoraConfig(kind, -1, 4, 8.0, keys=keys), seed=0)
        return kept_gates(model)

    monkeypatch.setattr(llama, "swiglu", activations.swiglu)
    assert gates() == 5
    monkeypatch.setattr(llama, "swiglu", cpu.swiglu)
    assert gates() == 3
    assert gates(keys=("mlp.up_proj",)) == 3
    assert gates("dora") == 4
