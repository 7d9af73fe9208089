"""Hostile and damaged GGUF files: one line, whatever the bytes, and no memory for what they claim."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from pathlib import Path

import pytest
from gguf_files import random_weights, write_gguf
from hypothesis import given, settings
from hypothesis import strategies as st

from localdpo.core.errors import LocalDPOError, UserError
from localdpo.gguf import families
from localdpo.gguf.convert import convert
from localdpo.gguf.file import GGUFFile
from localdpo.model.arrays import read_header

HEAD = b"GGUF" + struct.pack("<I", 3)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(tensors: int, keys: int) -> bytes:
    return HEAD + struct.pack("<QQ", tensors, keys)


def tensor(name: bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = 2**63
HOSTILE = {
    "empty": (b"", "cannot be read (it is empty)"),
    "magic": (b"GGML" + bytes(64), "it does not begin with GGUF"),
    "cut": (HEAD, "8 bytes expected at byte 8, 0 are left"),
    "version": (b"GGUF" + struct.pack("<I", 99) + bytes(16), "version 99: expected 2 or 3"),
    "big endian": (b"GGUF" + struct.pack(">I", 3) + bytes(16), "it is big endian"),
    "tensors": (header(HUGE, 0), "it says that it has 9,223,372,036,854,775,808 tensors, which cannot be"),
    "keys": (header(0, HUGE), "9,223,372,036,854,775,808 keys, which cannot be"),
    "long text": (header(0, 1) + struct.pack("<Q", HUGE) + bytes(64), "a text of 9,223,372,036,854,775,808"),
    "text beyond": (header(0, 1) + struct.pack("<Q", 10_000) + bytes(64), "10,000 bytes expected at byte 32"),
    "not UTF-8": (header(0, 1) + text(b"\xff\xfe") + bytes(64), "is not UTF-8"),
    "value type": (header(0, 1) + text(b"k") + struct.pack("<I", 77) + bytes(64), "type 77 of a value"),
    "list type": (header(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 9, 1) + bytes(64), "a list of type 9"),
    "list of texts": (
        header(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 8, 10**15) + bytes(64),
        "1,000,000,000,000,000 texts in a list, which cannot be",
    ),
    "list of numbers": (
        header(0, 1) + text(b"k") + struct.pack("<IIQ", 9, 0, 2**62) + bytes(64),
        "4,611,686,018,427,387,904 numbers in a list, which cannot be",
    ),
    "key twice": (header(0, 2) + (text(b"k") + struct.pack("<II", 4, 1)) * 2, "key 'k' occurs twice"),
    "tensor twice": (header(2, 0) + tensor(b"t", (1,)) * 2 + bytes(64), "tensor 't' occurs twice"),
    "dimensions": (header(1, 0) + tensor(b"t", (1,) * 5) + bytes(64), "tensor 't' has 5 dimensions"),
    "no numbers": (header(1, 0) + tensor(b"t", (4, 0)) + bytes(64), "F32 of shape (0, 4) cannot be"),
    "half a block": (header(1, 0) + tensor(b"t", (33,), 2) + bytes(64), "Q4_0 of shape (33,) cannot be"),
    "unknown type": (header(1, 0) + tensor(b"t", (1,), 999) + bytes(64), "tensors of type 999 are unknown"),
    "large": (header(1, 0) + tensor(b"t", (2**40, 2**40)) + bytes(64), "tensor t ends at byte 4,835,"),
    "offset": (header(1, 0) + tensor(b"t", (1,), 0, 2**60) + bytes(64), "tensor t ends at byte 1,152,"),
    "overlap": (
        header(2, 0) + tensor(b"a", (8,)) + tensor(b"b", (8,), 0, 16) + bytes(128),
        "tensor b: its bytes are also those of another",
    ),
    "alignment": (
        header(0, 1) + text(b"general.alignment") + struct.pack("<II", 4, 3),
        "general.alignment: expected a power of two",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_end_in_one_line_and_take_no_memory(tmp_path: Path, name: str) -> None:
    content, message = HOSTILE[name]
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(UserError) as caught:
        GGUFFile(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert caught.value.message.startswith(f"{path}: ")
    assert message in caught.value.message
    # Importing the package, which knows the rarer types, takes some MB.
    assert peak < 2**25


def test_the_pointer_of_a_file_that_was_not_fetched_is_said(tmp_path: Path) -> None:
    pointer = tmp_path / "m.gguf"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    for read in (GGUFFile, read_header):
        with pytest.raises(UserError, match=r"m\.gguf: only the pointer that Git LFS keeps .*: git lfs pull"):
            read(pointer)


def test_a_missing_file_and_a_folder_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file or directory"):
        GGUFFile(tmp_path / "none.gguf")
    with pytest.raises(UserError, match="Is a directory"):
        GGUFFile(tmp_path)


def test_values_are_read_as_they_are(tmp_path: Path) -> None:
    model, config = random_weights("llama")
    changed = {"a.bool": True, "a.list": [1.5, 2.5], "general.alignment": None}
    file = GGUFFile(write_gguf(tmp_path / "m.gguf", model, config, changed=changed))
    assert file.metadata["a.bool"] is True
    assert file.metadata["a.list"].tolist() == [1.5, 2.5]
    assert file.value("llama.block_count", int) == 2
    assert file.value("llama.block_count", float) == 2.0
    assert file.value("nothing", int, 7) == 7
    with pytest.raises(UserError, match=r"a\.bool: expected a whole number, got bool"):
        file.value("a.bool", int)
    assert families.family_of(file).name == "llama"


@pytest.fixture(scope="module")
def small_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    return write_gguf(path, *random_weights("llama")).read_bytes()


@settings(max_examples=40)
@given(data=st.data())
def test_damaged_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, small_file: bytes, data: st.DataObject
) -> None:
    """Whatever is changed in the header and in the tokenizer: a folder, or lines about what is wrong."""
    content = bytearray(small_file[: data.draw(st.integers(0, len(small_file)))])
    if data.draw(st.booleans()):
        content = bytearray(small_file)
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            at = data.draw(st.integers(0, min(len(content), 20_000) - 1))
            content[at] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "m.gguf").write_bytes(content)
    with contextlib.suppress(LocalDPOError):
        convert(folder / "m.gguf", folder / "out")
        (folder / "out").rename(folder / "m.gguf.out")
    assert not (folder / "out").exists()
