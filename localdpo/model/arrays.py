"""Small typed views of MLX: parameter trees by name, array files, the random key."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from localdpo.core.errors import UserError
from localdpo.model.safetensors_header import check_safetensors


def named(tree: Any) -> dict[str, mx.array]:
    """The arrays of a parameter tree by their dotted names."""
    return dict(cast("list[tuple[str, mx.array]]", tree_flatten(tree)))


def load_arrays(file: Path) -> dict[str, mx.array]:
    """The arrays of a safetensors file, in memory: `mx.load` alone is lazy and finds damage late.

    Raises:
        UserError: the file cannot be read, or its header does not describe it exactly.
    """
    check_safetensors(file)
    try:
        arrays = cast("dict[str, mx.array]", mx.load(str(file)))
        mx.eval(arrays)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{file}: cannot be read: {str(error).strip().splitlines()[0]}") from error
    return arrays


def float_types(model: nn.Module) -> set[mx.Dtype]:
    """The floating-point types among a model's parameters."""
    return {a.dtype for a in named(model.parameters()).values() if mx.issubdtype(a.dtype, mx.floating)}


def random_key() -> tuple[int, int]:
    """The two words of MLX's random key."""
    state = cast("list[mx.array]", mx.random.state)
    high, low = cast("list[int]", state[0].tolist())
    return high, low


def set_random_key(key: tuple[int, int]) -> None:
    """Put back what `random_key` gave; `mx.random.state` itself may refuse assignment."""
    mx.random.seed((key[0] << 32) | key[1])
