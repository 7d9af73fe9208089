"""The header of a safetensors file, checked before any of its arrays is used.

The file is eight bytes with the header's length, the header (a JSON object: name -> dtype, shape and the two
offsets of its bytes), then the bytes. A header that was damaged can still be read, and gives other values
without a word; so the offsets must cover the bytes exactly, each of them once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any, Final, NoReturn

from localdpo.core.errors import UserError

# The format's own limit.
_LONGEST_HEADER: Final = 100_000_000
_LENGTH_BYTES: Final = 8
_META: Final = "__metadata__"
BITS: Final = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


def check_safetensors(file: Path) -> None:
    """Raise UserError, with the file and the tensor, unless the header describes the file exactly."""
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
        _check(header, size - _LENGTH_BYTES - length)
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{file}: cannot be read: not a whole safetensors file: {why}") from error


def _check(header: Any, size: int) -> None:
    """Raise ValueError unless the tensors cover `size` bytes, without a gap and without sharing any."""
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    # MLX writes null for no notes.
    meta = header.pop(_META, None) or {}
    if not isinstance(meta, dict) or not all(isinstance(value, str) for value in meta.values()):
        raise ValueError(f"{_META} is no object of texts")
    end = 0
    for first, last, name in sorted(_places(header)):
        if first != end:
            raise ValueError(f"tensor {name!r} begins at byte {first:,} of the data, expected {end:,}")
        end = last
    if end != size:
        raise ValueError(f"its tensors have {end:,} bytes, the file has {size:,} for them")


def _places(header: dict[str, Any]) -> Iterator[tuple[int, int, str]]:
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


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("its header has a name twice")
    return found


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"its header holds {text}")
