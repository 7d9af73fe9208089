"""A damaged safetensors file is refused in one line, however its header was damaged."""

from __future__ import annotations

import json
import random
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from localdpo.core.errors import UserError
from localdpo.model.arrays import load_arrays, read_header

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWO = {"dtype": "F16", "shape": [2, 2], "data_offsets": [8, 16]}


def written(path: Path, header: object, data: int = 16, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data))
    return path


def test_what_mlx_writes_is_whole(tmp_path: Path) -> None:
    arrays = {"a": mx.ones((2, 3)), "b": mx.zeros((0, 4)), "c": mx.array(True), "d": mx.ones(3, mx.bfloat16)}
    mx.save_safetensors(str(tmp_path / "a.safetensors"), arrays, {"made": "here"})
    read_header(tmp_path / "a.safetensors")
    read_header(written(tmp_path / "b", {"one": ONE, "two": TWO}))
    read_header(written(tmp_path / "c", {}, data=0))


@pytest.mark.parametrize(
    "header",
    [
        {"one": ONE, "two": TWO | {"data_offsets": [7, 15]}},
        {"one": ONE, "two": TWO | {"data_offsets": [0, 8]}},
        {"one": ONE | {"data_offsets": [4, 12]}},
        {"one": ONE},
        {"one": ONE, "two": TWO | {"shape": [2, 3]}},
        {"one": ONE | {"dtype": "F33"}},
        {"one": ONE | {"shape": [-2]}},
        {"one": {"dtype": "F32", "shape": [2]}},
        {"one": 3},
        {"__metadata__": {"a": 1}},
        [1],
        b'{"one": NaN}',
        b"[" * 100_000,
        b'{"\xff": 1}',
        b'{"one": ',
    ],
)
def test_a_header_that_does_not_describe_its_file_is_refused(header: object, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", header)
    for read in (read_header, load_arrays):
        with pytest.raises(
            UserError, match=r"x\.safetensors: cannot be read: not a complete safetensors file"
        ):
            read(path)


@pytest.mark.parametrize("length", [2**63, 100_000_001, 300])
def test_a_header_longer_than_its_file_is_refused(length: int, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", {"one": ONE, "two": TWO}, length=length)
    with pytest.raises(UserError, match="header"):
        read_header(path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError, match="cannot be read"):
            load_arrays(path)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read"):
        load_arrays(tmp_path / "empty")


def test_damage_in_the_header_never_gives_other_shapes_or_shifted_values(tmp_path: Path) -> None:
    """What is in the header and still describes the file exactly is a name, a note or the order of two."""
    path = tmp_path / "x.safetensors"
    mx.save_safetensors(str(path), {"a": mx.arange(6), "b": mx.arange(8, dtype=mx.float16)})
    whole, draw = path.read_bytes(), random.Random(0)
    end = 8 + int.from_bytes(whole[:8], "little")
    values = {"a": np.arange(6), "b": np.arange(8)}
    for _ in range(300):
        content = bytearray(whole)
        content[draw.randrange(end)] ^= 1 << draw.randrange(8)
        path.write_bytes(bytes(content))
        try:
            found = load_arrays(path)
        except UserError:
            continue
        for name, array in found.items():
            if name in values and array.dtype in (mx.int32, mx.float16):
                np.testing.assert_array_equal(np.array(array), values[name])
