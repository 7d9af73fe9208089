"""A file of lines read while it grows: each line once, whole, however it was written and read."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from localdpo.records.tail import LineTail

lines = st.lists(st.binary(max_size=9).map(lambda raw: raw.replace(b"\n", b" ")), max_size=8)


@given(lines, st.integers(1, 12), st.one_of(st.none(), st.integers(1, 20)))
def test_each_line_comes_once_and_whole(
    tmp_path_factory: object, lines: list[bytes], cut: int, max_bytes: int | None
) -> None:
    path = Path(tmp_path_factory.mktemp("tail")) / "log"  # type: ignore[attr-defined]
    tail, seen = LineTail(path), []
    assert tail.poll() == []
    whole = b"".join(line + b"\n" for line in lines)
    with path.open("wb") as file:
        for start in range(0, len(whole), cut):
            file.write(whole[start : start + cut])
            file.flush()
            seen += tail.poll(max_bytes)
            while tail.behind:
                seen += tail.poll(max_bytes)
        file.write(b"torn")
        file.flush()
        assert tail.poll() == []
    assert seen == [line for line in lines if line.strip()]
    assert tail.offset == len(whole)


def test_each_line_has_its_number_empty_ones_counted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = LineTail(path)
    path.write_bytes(b"one\n\n  \nfour\nto")
    assert tail.numbered() == [(1, b"one"), (4, b"four")]
    with path.open("ab") as file:
        file.write(b"rn\nsix\n")
    assert tail.numbered(1) == [(5, b"torn")]
    assert tail.numbered() == [(6, b"six")]


def test_skip_passes_over_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    tail = LineTail(path)
    tail.skip()
    with path.open("ab") as file:
        file.write(b"two\n")
    assert tail.poll() == [b"two"]
