"""Reading a GGUF file: its metadata, and where the bytes of each tensor are. The file is not trusted.

Layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little endian: magic, version, number of
tensors, number of keys; the keys with their values; the tensors' names, shapes, types and offsets; padding;
the tensors' bytes. Every count, length and offset is compared with the bytes that are there before anything
is allocated for it.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from localdpo.core.atomic import require_fetched
from localdpo.core.errors import UserError

MAGIC: Final = b"GGUF"
VERSIONS: Final = (2, 3)
SUFFIX: Final = ".gguf"
# Far more than any model has.
MOST_KEYS: Final = 100_000
MOST_TENSORS: Final = 100_000
MOST_TEXTS: Final = 4_000_000
LONGEST_TEXT: Final = 16 * 2**20
MOST_DIMENSIONS: Final = 4
ALIGNMENT: Final = 32

# What the number of a value's type stands for.
_SCALARS: Final = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _ARRAY = 8, 9
# What a text or an array takes at least: its length; an array, the type of its items, too.
_LEAST_TEXT: Final = 8

# Numbers and bytes of a block of each type that is kept as it is, by the type's number: a block's weights
# share their scale. The `gguf` package knows the others.
F32, F16, Q4_0, Q4_1, Q8_0, BF16 = 0, 1, 2, 3, 8, 30
NAMES: Final = {F32: "F32", F16: "F16", Q4_0: "Q4_0", Q4_1: "Q4_1", Q8_0: "Q8_0", BF16: "BF16"}
BLOCKS: Final = {F32: (1, 4), F16: (1, 2), BF16: (1, 2), Q4_0: (32, 18), Q4_1: (32, 20), Q8_0: (32, 34)}

T = TypeVar("T")


@dataclass(frozen=True)
class Tensor:
    """Where a tensor is.

    Attributes:
        shape: as NumPy has it, rows first (a GGUF file lists the columns first).
        kind: number of its type, see NAMES and gguf.GGMLQuantizationType.
        start, size: its bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class GGUFFile:
    """An open GGUF file: `metadata` by key, `tensors` by name, and the bytes of each.

    Values are int, float, bool, str, a NumPy array of numbers or a list of texts.

    Raises UserError: the file cannot be read, or is not a complete GGUF file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            require_fetched(path)
            with path.open("rb") as stream:
                # An empty file cannot be mapped.
                self._bytes = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is empty"
            raise UserError(f"{path}: cannot be read ({why})") from error
        try:
            self.metadata, self.tensors = _parse(self._bytes)
        except ValueError as error:
            raise UserError(f"{path}: not a complete GGUF file: {error}") from error

    def bytes_of(self, tensor: Tensor) -> np.ndarray:
        """The tensor's bytes [size] uint8, a view of the file."""
        return np.frombuffer(self._bytes, np.uint8, tensor.size, tensor.start)

    def value(self, key: str, kind: type[T], default: T | None = None) -> T:
        """The value of a key; an int serves as a float.

        Raises UserError: it has another type, or is missing and has no default.
        """
        value = self.metadata.get(key, default)
        if kind is float and type(value) is int:
            value = float(value)
        # bool is an int to isinstance.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            got = "nothing" if value is None else type(value).__name__
            raise UserError(f"{self.path}: {key}: expected {_WORDS[kind]}, got {got}")
        return value


_WORDS: Final[Mapping[type, str]] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    list: "a list of texts",
    np.ndarray: "a list of numbers",
}


class _Cursor:
    """Takes values from bytes in turn. Raises ValueError where fewer are left than one needs."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.at = data, 0

    def take(self, size: int) -> int:
        """The place of the next `size` bytes, which are passed."""
        start, left = self.at, len(self._data) - self.at
        if size > left:
            raise ValueError(f"{size:,} bytes expected at byte {start:,}, {left:,} are left")
        self.at += size
        return start

    def scalar(self, code: str) -> Any:
        return struct.unpack_from(f"<{code}", self._data, self.take(struct.calcsize(f"<{code}")))[0]

    def count(self, most: int, what: str, least: int) -> int:
        """A number of things of which each takes `least` bytes at least."""
        count = int(self.scalar("Q"))
        if count > min(most, (len(self._data) - self.at) // least):
            raise ValueError(f"it says that it has {count:,} {what}, which cannot be")
        return count

    def text(self) -> str:
        length = self.scalar("Q")
        if length > LONGEST_TEXT:
            raise ValueError(f"a text of {length:,} bytes at byte {self.at:,}")
        start = self.take(length)
        try:
            return self._data[start : start + length].decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"the text at byte {start:,} is not UTF-8") from error

    def value(self) -> Any:
        kind = self.scalar("I")
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _ARRAY:
            raise ValueError(f"type {kind} of a value at byte {self.at:,} is unknown")
        return self._array()

    def _array(self) -> list[str] | np.ndarray:
        kind = self.scalar("I")
        if kind == _TEXT:
            return [self.text() for _ in range(self.count(MOST_TEXTS, "texts in a list", _LEAST_TEXT))]
        if kind not in _SCALARS:
            raise ValueError(f"a list of type {kind} at byte {self.at:,} is unknown")
        dtype = np.dtype(_SCALARS[kind]).newbyteorder("<")
        count = self.count(2**63, "numbers in a list", dtype.itemsize)
        return np.frombuffer(self._data, dtype, count, self.take(count * dtype.itemsize))


def _parse(data: mmap.mmap) -> tuple[dict[str, Any], dict[str, Tensor]]:
    cursor = _Cursor(data)
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"it does not begin with {MAGIC.decode()}")
    cursor.take(len(MAGIC))
    version = cursor.scalar("I")
    if version not in VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS
        why = "it is big endian; convert it to little endian" if swapped else "expected 2 or 3"
        raise ValueError(f"version {version}: {why}")
    tensors = cursor.count(MOST_TENSORS, "tensors", _LEAST_TEXT)
    keys = cursor.count(MOST_KEYS, "keys", _LEAST_TEXT)
    metadata = _distinct(keys, "key", lambda: (cursor.text(), cursor.value()))
    entries = _distinct(tensors, "tensor", lambda: _entry(cursor))
    alignment = metadata.get("general.alignment", ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError("general.alignment: expected a power of two")
    first = -(-cursor.at // alignment) * alignment
    placed = {
        name: Tensor(name, shape, kind, first + offset, _size(name, shape, kind))
        for name, (shape, kind, offset) in entries.items()
    }
    end = first
    for tensor in sorted(placed.values(), key=lambda tensor: tensor.start):
        if tensor.start < end:
            raise ValueError(f"tensor {tensor.name}: its bytes are also those of another")
        end = tensor.start + tensor.size
        if end > len(data):
            raise ValueError(f"tensor {tensor.name} ends at byte {end:,}, the file has {len(data):,}")
    return metadata, placed


def _distinct(count: int, what: str, read: Callable[[], tuple[str, T]]) -> dict[str, T]:
    """`count` named things."""
    things: dict[str, T] = {}
    for _ in range(count):
        name, thing = read()
        if name in things:
            raise ValueError(f"{what} {name!r} occurs twice")
        things[name] = thing
    return things


def _entry(cursor: _Cursor) -> tuple[str, tuple[tuple[int, ...], int, int]]:
    """Name of a tensor, and its shape, type and offset."""
    name, dimensions = cursor.text(), cursor.scalar("I")
    if dimensions > MOST_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has {dimensions:,} dimensions")
    shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
    return name, (shape, cursor.scalar("I"), cursor.scalar("Q"))


def _size(name: str, shape: tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor."""
    numbers, size = block_of(kind)
    if not shape or 0 in shape or shape[-1] % numbers:
        raise ValueError(f"tensor {name!r}: {type_name(kind)} of shape {shape} cannot be")
    return prod(shape) // numbers * size


def block_of(kind: int) -> tuple[int, int]:
    """Numbers and bytes of a block of a tensor's type. Raises ValueError for an unknown type."""
    if kind in BLOCKS:
        return BLOCKS[kind]
    constants = package().constants
    try:
        numbers, size = constants.GGML_QUANT_SIZES[constants.GGMLQuantizationType(kind)]
    except ValueError as error:
        raise ValueError(f"tensors of type {kind} are unknown") from error
    return int(numbers), int(size)


def type_name(kind: int) -> str:
    """What llama.cpp calls the type of a tensor."""
    return NAMES.get(kind) or str(package().constants.GGMLQuantizationType(kind).name)


def package() -> Any:
    """The module `gguf`, which dequantises the rarer types and writes files.

    Raises UserError: it is not installed.
    """
    try:
        import gguf
    except ModuleNotFoundError as error:
        raise UserError(
            "this needs the package gguf, which is not installed: pip install 'localdpo[gguf]'"
        ) from error
    return gguf
