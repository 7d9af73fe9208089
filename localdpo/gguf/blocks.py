"""Blocks of quantised weights: GGUF's layouts and MLX's, both ways without rounding.

Both quantise groups of 32 weights along a row. GGUF stores a group after its scale d (and minimum m), MLX all
groups of a row packed in 32-bit words beside `scales` and `biases`, weight = scale * q + bias:

    type   weight in GGUF    q in GGUF   in MLX
    Q4_0   d * (q - 8)       0 to 15     4 bits, scale d, bias -8 d
    Q4_1   d * q + m         0 to 15     4 bits, scale d, bias m
    Q8_0   d * q             -128 to 127 8 bits of q + 128, scale d, bias -128 d

d and m are float16, and a power of two times d is exact in it, too. A 4-bit block holds number i in the lower
half of byte i and number i + 16 in its upper half; MLX holds eight in order in a word, the first lowest.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import mlx.core as mx
import numpy as np

from localdpo.gguf.file import BF16, BLOCKS, F16, F32, Q4_0, Q4_1, Q8_0, package

GROUP: Final = 32
BITS: Final = {Q4_0: 4, Q4_1: 4, Q8_0: 8}
# By which q is shifted where it is symmetric.
_MIDDLE: Final = {Q4_0: 8, Q8_0: 128}
_HALF: Final = GROUP // 2


class Packed(NamedTuple):
    """A quantised matrix as MLX has it: words [rows, columns * bits / 32] uint32, and of each group of 32
    its scale and bias [rows, columns / 32] float16."""

    weight: np.ndarray
    scales: np.ndarray
    biases: np.ndarray


def unpack(raw: np.ndarray, kind: int, rows: int) -> Packed:
    """MLX's form of the bytes [size] of a Q4_0, Q4_1 or Q8_0 matrix."""
    blocks = raw.reshape(rows, -1, BLOCKS[kind][1])
    scales = _halves(blocks[..., :2])
    if kind == Q8_0:
        numbers = blocks[..., 2:] ^ 0x80  # two's complement, shifted by 128
        words = np.ascontiguousarray(numbers).reshape(rows, -1).view("<u4")
    else:
        pairs = blocks[..., BLOCKS[kind][1] - _HALF :]
        numbers = np.concatenate([pairs & 0xF, pairs >> 4], axis=-1)
        words = (numbers[..., 0::2] | (numbers[..., 1::2] << 4)).reshape(rows, -1).view("<u4")
    biases = _halves(blocks[..., 2:4]) if kind == Q4_1 else scales * np.float16(-_MIDDLE[kind])
    return Packed(words, scales, biases)


def _halves(blocks: np.ndarray) -> np.ndarray:
    """float16 numbers [rows, groups] of two bytes each."""
    return np.ascontiguousarray(blocks).view("<f2")[..., 0]


def pack(packed: Packed, kind: int) -> np.ndarray:
    """The bytes [rows, bytes of a row] of a matrix whose type is `exact_type`."""
    rows = len(packed.weight)
    numbers = np.ascontiguousarray(packed.weight).view(np.uint8)
    if kind == Q8_0:
        body = numbers.reshape(rows, -1, GROUP) ^ 0x80
    else:
        numbers = np.stack([numbers & 0xF, numbers >> 4], axis=-1).reshape(rows, -1, GROUP)
        body = numbers[..., :_HALF] | (numbers[..., _HALF:] << 4)
    heads = [packed.scales, packed.biases] if kind == Q4_1 else [packed.scales]
    parts = [np.ascontiguousarray(head[..., None], dtype="<f2").view(np.uint8) for head in heads]
    return np.concatenate([*parts, body], axis=-1).reshape(rows, -1)


def exact_type(scales: np.ndarray, biases: np.ndarray, bits: int) -> int | None:
    """The GGUF type that holds a matrix with these float16 scales and biases to the bit: Q4_0, Q4_1, Q8_0;
    None if none does."""
    for kind, middle in _MIDDLE.items():
        if bits == BITS[kind] and np.array_equal(scales * np.float16(-middle), biases):
            return kind
    return Q4_1 if bits == BITS[Q4_1] else None


def dense(raw: np.ndarray, kind: int, shape: tuple[int, ...]) -> mx.array:
    """The numbers of a tensor: F32, F16 and BF16 as they are, others dequantised to float32.

    Raises UserError: the package gguf, which dequantises, is not installed; ValueError: it cannot dequantise
    this type.
    """
    if kind == F32:
        return mx.array(raw.view("<f4").reshape(shape))
    if kind == F16:
        return mx.array(raw.view("<f2").reshape(shape))
    if kind == BF16:
        return mx.array(raw.view("<u2").reshape(shape)).view(mx.bfloat16)
    gguf = package()
    try:
        numbers = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType(kind))
    except NotImplementedError as error:
        name = gguf.GGMLQuantizationType(kind).name
        raise ValueError(f"the package gguf cannot dequantise {name}") from error
    return mx.array(numbers.astype(np.float32, copy=False).reshape(shape))
