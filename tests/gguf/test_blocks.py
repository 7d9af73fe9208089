"""Blocks of quantised weights against the `gguf` package, which is llama.cpp's own."""

from __future__ import annotations

import gguf
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localdpo.gguf import blocks
from localdpo.gguf.file import BF16, F16, F32, Q4_0, Q4_1, Q8_0

KINDS = (Q4_0, Q4_1, Q8_0)


def raw_blocks(kind: int, rows: int, groups: int, seed: int) -> np.ndarray:
    """Random blocks [rows, bytes]: any numbers, scales of any finite float16."""
    rng = np.random.default_rng(seed)
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)][1]
    raw = rng.integers(0, 256, (rows, groups, size), dtype=np.uint8)
    heads = 2 if kind == Q4_1 else 1
    scales = (rng.normal(size=(rows, groups, heads)) * 10.0 ** rng.integers(-6, 2)).astype(np.float16)
    raw[..., : 2 * heads] = scales.view(np.uint8)
    return raw.reshape(rows, -1)


@settings(max_examples=40)
@given(st.sampled_from(KINDS), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32))
def test_blocks_mean_in_mlx_what_llama_cpp_computes_and_come_back_bit_for_bit(
    kind: int, rows: int, groups: int, seed: int
) -> None:
    raw = raw_blocks(kind, rows, groups, seed)
    packed = blocks.unpack(raw.reshape(-1), kind, rows)
    wide = [mx.array(part).astype(mx.float32) for part in packed[1:]]
    ours = mx.dequantize(mx.array(packed.weight), *wide, group_size=32, bits=blocks.BITS[kind])
    theirs = gguf.dequantize(raw, gguf.GGMLQuantizationType(kind))
    # Two roundings of float32: of the product, and of the sum with the bias.
    bound = np.abs(wide[1]).max() * 2**-22
    np.testing.assert_allclose(np.array(ours), theirs, rtol=1e-6, atol=bound)
    exact = blocks.exact_type(packed.scales, packed.biases, blocks.BITS[kind])
    assert exact in (kind, Q4_0)  # a Q4_1 block may happen to be symmetric
    np.testing.assert_array_equal(blocks.pack(packed, kind), raw)


def test_layers_that_gguf_cannot_hold_exactly_have_no_type() -> None:
    _, *parts = mx.quantize(mx.random.normal((4, 64)), group_size=32, bits=8)
    scales, biases = (np.array(part.astype(mx.float16)) for part in parts)
    assert blocks.exact_type(scales, biases, 8) is None
    assert blocks.exact_type(scales, biases, 6) is None


@pytest.mark.parametrize("kind", [F32, F16, BF16])
def test_plain_numbers_are_read_as_they_are(kind: int) -> None:
    numbers = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    raw = gguf.quantize(numbers, gguf.GGMLQuantizationType(kind))
    array = blocks.dense(raw.view(np.uint8).reshape(-1), kind, (3, 32))
    theirs = gguf.dequantize(raw, gguf.GGMLQuantizationType(kind))
    np.testing.assert_array_equal(np.array(array.astype(mx.float32)), theirs)


def test_other_types_are_dequantised_by_the_package() -> None:
    kind = gguf.GGMLQuantizationType.Q5_1
    raw = gguf.quantize(np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32), kind)
    array = blocks.dense(raw.reshape(-1), kind.value, (3, 64))
    np.testing.assert_array_equal(np.array(array), gguf.dequantize(raw, kind))
