"""What MLX lacks for arrays: trees by name, checked array files, the random key, gradient checkpointing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from localdpo.core.errors import UserError

# The format's own limit.
_LONGEST_HEADER: Final = 100_000_000
_LENGTH_BYTES: Final = 8
BITS: Final = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits of a number of each dtype of a safetensors file."""
TensorEntry: TypeAlias = "dict[str, Any]"
"""What a header says of a tensor: dtype, shape and the two data_offsets of its bytes."""
# MLX's stubs give what custom_function returns no call's type.
_custom_function = cast("Callable[[Any], Any]", mx.custom_function)


def named(tree: Any) -> dict[str, mx.array]:
    """The arrays of a parameter tree by their dotted names."""
    return dict(cast("list[tuple[str, mx.array]]", tree_flatten(tree)))


def float_types(model: nn.Module) -> set[mx.Dtype]:
    """The floating-point types among a model's parameters."""
    return {a.dtype for a in named(model.parameters()).values() if mx.issubdtype(a.dtype, mx.floating)}


def random_key() -> tuple[int, int]:
    """The two words of MLX's random key."""
    state = cast("list[mx.array]", mx.random.state)
    high, low = cast("list[int]", state[0].tolist())
    return high, low


def set_random_key(key: tuple[int, int]) -> None:
    """Put back what `random_key` returned; `mx.random.state` itself may refuse assignment."""
    mx.random.seed((key[0] << 32) | key[1])


# --- files ---------------------------------------------------------------------------------------------


def load_arrays(file: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, in memory: `mx.load` alone is lazy and finds damage late.

    Raises:
        UserError: the file cannot be read, or its header does not describe it exactly.
    """
    read_header(file)
    try:
        arrays = cast("dict[str, mx.array]", mx.load(str(file)))
        mx.eval(arrays)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {str(error).strip().splitlines()[0]}") from error
    return arrays


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors that the header of a safetensors file lists, once it is known to describe the file exactly.

    The file is eight bytes with the header's length, the header (a JSON object: name -> dtype, shape and the
    two offsets of its bytes), then the bytes. A damaged header can still be read, and its tensors get other
    values without a word; so the offsets must cover the bytes exactly, each of them once.

    Raises:
        UserError: with the file and the tensor, where it does not.
    """
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            start = stream.read(_LENGTH_BYTES)
            length = int.from_bytes(start, "little")
            if len(start) < _LENGTH_BYTES or length > min(_LONGEST_HEADER, size - _LENGTH_BYTES):
                raise ValueError(f"its header cannot be {length:,} bytes long, the file has {size:,}")
            text = stream.read(length).decode("utf-8")
        header = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number)
        _check_header(header, size - _LENGTH_BYTES - length)
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file}: cannot be read: not a complete safetensors file: {why}") from error
    tensors: dict[str, TensorEntry] = header
    return tensors


def _check_header(header: Any, size: int) -> None:
    """Raise ValueError unless the tensors cover `size` bytes, without a gap and without sharing any.

    Notes (`__metadata__`) are checked and removed.
    """
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    # MLX writes null for no notes.
    meta = header.pop("__metadata__", None) or {}
    if not isinstance(meta, dict) or not all(isinstance(value, str) for value in meta.values()):
        raise ValueError("__metadata__ is no object of texts")
    end = 0
    for first, last, name in sorted(_byte_ranges(header)):
        if first != end:
            raise ValueError(f"tensor {name!r} begins at byte {first:,} of the data, expected {end:,}")
        end = last
    if end != size:
        raise ValueError(f"its tensors have {end:,} bytes, the file has {size:,} for them")


def _byte_ranges(header: Mapping[str, Any]) -> Iterator[tuple[int, int, str]]:
    """First byte, end and name of each tensor, whose shape and dtype need just so many bytes."""
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise ValueError(f"tensor {name!r}: expected dtype, shape and data_offsets")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in BITS:
            raise ValueError(f"tensor {name!r}: unknown dtype {dtype!r}")
        if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
            raise ValueError(f"tensor {name!r}: expected whole numbers as shape and two as data_offsets")
        first, last = offsets
        if prod(shape) * BITS[dtype] != (last - first) * 8:
            raise ValueError(
                f"tensor {name!r}: {dtype} of shape {tuple(shape)} does not have {last - first:,} bytes"
            )
        yield first, last, name


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _object(members: list[tuple[str, Any]]) -> dict[str, Any]:
    by_name = dict(members)
    if len(by_name) < len(members):
        raise ValueError("its header has a name twice")
    return by_name


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"its header holds {text}")


# --- gradient checkpointing ----------------------------------------------------------------------------


def recomputed(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function`, of trees of arrays, with nothing but its arguments kept for the backward pass.

    `mx.checkpoint` lets intermediate arrays be rebuilt as soon as the forward pass is done, and MLX, which
    evaluates a graph depth first, then rebuilds those of several calls before it needs them. Here they wait
    for the cotangents, so that the intermediates of one call are alive at a time.

    What it reads besides its arguments gets no gradient, and neither do masks and token ids among them: they
    are constants of the function that is differentiated, since a fused attention kernel refuses a mask that
    wants a gradient.
    """
    wrapped = _custom_function(function)

    @wrapped.vjp
    def backward(primals: Any, cotangents: Any, outputs: Any) -> Any:
        flow = _leaves(cotangents)
        leaves = mx.depends(_leaves(primals), flow)
        varied = [leaf for leaf in leaves if _has_gradient(leaf)]

        def flat(*arrays: mx.array) -> list[mx.array]:
            rest = iter(arrays)
            return _leaves(function(*_like(primals, [next(rest) if _has_gradient(a) else a for a in leaves])))

        _, grads = mx.vjp(flat, varied, flow)
        rest = iter(grads)
        return _like(primals, [next(rest) if _has_gradient(a) else mx.zeros_like(a) for a in leaves])

    return wrapped


def _has_gradient(array: mx.array) -> bool:
    return mx.issubdtype(array.dtype, mx.floating)


def _leaves(tree: Any) -> list[mx.array]:
    return [array for _, array in cast("list[tuple[str, mx.array]]", tree_flatten(tree))]


def _like(tree: Any, leaves: Any) -> Any:
    """A tree of the form of `tree` with these leaves."""
    rest = iter(leaves)
    return tree_map(lambda _: next(rest), tree)
