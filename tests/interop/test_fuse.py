"""Merging: the sum in float32, rounded once; stacked experts and embeddings included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from exported_runs import trained
from mlx.utils import tree_flatten
from mlx_lm import load as mlx_lm_load
from model_families import GROUP_SIZE, tiny, with_lora

from localdpo.core.errors import LocalDPOError
from localdpo.interop.fuse import fuse, merged
from localdpo.interop.targets import TARGETS, Settings
from localdpo.model import lora
from localdpo.model.load import load_base

IDS = mx.array([[5, 6, 7, 8, 9, 10, 11, 12]])


def logits(model: Any) -> np.ndarray:
    return np.array(model(IDS).astype(mx.float32))


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("llama", {"dora": True}),
        ("llama", {"keys": ["self_attn.q_proj", "lm_head", "model.embed_tokens"]}),
        # The embedding is the output head, too.
        ("qwen3", {"keys": ["model.embed_tokens"]}),
        ("qwen2", {}),  # with biases
        ("qwen3_moe", {}),
        ("gpt_oss", {}),
    ],
)
def test_a_merged_model_computes_what_the_adapted_one_does(family: str, options: dict[str, Any]) -> None:
    model = with_lora(tiny(family), **options)
    before = logits(model)
    assert fuse(model, None) == {}
    assert not [name for name, _ in tree_flatten(model.parameters()) if "lora" in name]
    np.testing.assert_allclose(logits(model), before, atol=2e-4)


def test_a_merged_layer_is_the_sum_of_float64() -> None:
    model = with_lora(tiny("llama"))
    layer = model.model.layers[2].mlp.down_proj
    w, a, b = (np.array(x, dtype=np.float64) for x in (layer.linear.weight, layer.lora_a, layer.lora_b))
    fuse(model, None)
    expected = w + 4.0 * (a @ b).T
    np.testing.assert_allclose(np.array(model.model.layers[2].mlp.down_proj.weight), expected, atol=1e-6)


def test_a_merged_dora_layer_has_the_magnitude_that_was_learnt() -> None:
    model = with_lora(tiny("llama"), dora=True)
    layer = model.model.layers[0].self_attn.q_proj
    layer.m = layer.m * 1.5
    w, a, b, m = (
        np.array(x, dtype=np.float64) for x in (layer.linear.weight, layer.lora_a, layer.lora_b, layer.m)
    )
    total = w + 4.0 * (a @ b).T
    expected = m[:, None] * total / np.linalg.norm(total, axis=1, keepdims=True)
    fuse(model, None)
    weight = np.array(model.model.layers[0].self_attn.q_proj.weight)
    np.testing.assert_allclose(weight, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(weight, axis=1), m, rtol=1e-5)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_moe"])
def test_eight_bits_lose_less_than_the_four_of_the_base(family: str) -> None:
    exact = with_lora(tiny(family, bits=4))
    expected = logits(exact)
    gaps = {}
    for bits in (4, 8):
        model = with_lora(tiny(family, bits=4))
        quantisation = fuse(model, bits)
        assert all(entry["bits"] == bits for entry in quantisation.values())
        assert all(entry["group_size"] == GROUP_SIZE for entry in quantisation.values())
        gaps[bits] = float(np.abs(logits(model) - expected).max())
    assert gaps[8] < gaps[4] / 5


@pytest.mark.parametrize("mode", ["affine", "mxfp4"])
def test_numbers_keep_the_type_of_the_base(mode: str) -> None:
    model = tiny("qwen3")
    model.set_dtype(mx.float16)
    nn.quantize(model, group_size=32, bits=4, mode=mode)
    with_lora(model, keys=["self_attn.q_proj", "mlp.down_proj"])
    before = logits(model)
    quantisation = fuse(model, 8)
    layer = model.model.layers[0].self_attn
    assert quantisation["model.layers.0.self_attn.q_proj"]["mode"] == "affine"
    assert (layer.q_proj.bits, layer.q_proj.scales.dtype) == (8, mx.float16)
    assert (layer.k_proj.bits, layer.k_proj.mode) == (4, mode)
    assert np.abs(logits(model) - before).max() < 0.1


def test_what_mlx_lm_loads_is_what_was_merged(quantised_model: Path, tmp_path: Path) -> None:
    """Through mlx-lm's own loader: merged layers in 8 bits, the others as they were, to the bit."""
    run = trained(tmp_path, quantised_model, keys=("self_attn.q_proj",))
    folder = tmp_path / "out"
    folder.mkdir()
    TARGETS["mlx"].prepare(run, Settings()).write(folder)
    model, _ = mlx_lm_load(str(folder))
    layer = model.model.layers[0]
    assert (layer.self_attn.q_proj.bits, layer.self_attn.k_proj.bits, layer.mlp.up_proj.bits) == (8, 4, 4)
    base, _ = mlx_lm_load(str(quantised_model))
    assert mx.array_equal(layer.mlp.up_proj.weight, base.model.layers[0].mlp.up_proj.weight)
    adapted = load_base(str(quantised_model)).model
    lora.attach(adapted, run.shape, seed=0)
    lora.load_weights(adapted, run.adapter)
    there = logits(load_base(str(folder)).model)
    change = np.abs(logits(adapted) - logits(load_base(str(quantised_model)).model)).max()
    assert np.abs(there - logits(adapted)).max() < 0.05 * change


def test_a_dense_export_of_a_quantised_base_has_no_trace_of_it(quantised_model: Path, tmp_path: Path) -> None:
    config, weights = merged(trained(tmp_path, quantised_model), None, dequantise=True)
    assert not {"quantization", "quantization_config"} & config.keys()
    assert not [name for name in weights if name.endswith((".scales", ".biases"))]


def test_bits_of_a_dense_base_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(LocalDPOError, match="is not quantised, and neither is the export"):
        merged(trained(tmp_path, tiny_model), 4, dequantise=False)
