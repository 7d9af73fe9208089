"""Append-only logs: each line is read once and complete, whoever writes, is killed, or fills the disk."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo.core.errors import UserError
from localdpo.records import log as log_module
from localdpo.records.log import LogTail, LogWriter, decode, encode

lines = st.lists(st.binary(max_size=9).map(lambda raw: raw.replace(b"\n", b" ")), max_size=8)


@given(lines, st.integers(1, 12), st.one_of(st.none(), st.integers(1, 20)))
def test_each_line_comes_once_and_whole(
    tmp_path_factory: object, lines: list[bytes], cut: int, max_bytes: int | None
) -> None:
    path = Path(tmp_path_factory.mktemp("tail")) / "log"  # type: ignore[attr-defined]
    tail, seen = LogTail(path), []
    assert tail.lines() == []
    whole = b"".join(line + b"\n" for line in lines)
    with path.open("wb") as file:
        for start in range(0, len(whole), cut):
            file.write(whole[start : start + cut])
            file.flush()
            seen += [line for _, line in tail.lines(max_bytes)]
            while tail.behind:
                seen += [line for _, line in tail.lines(max_bytes)]
        file.write(b"torn")
        file.flush()
        assert tail.lines() == []
    assert seen == [line for line in lines if line.strip()]
    assert tail.offset == len(whole)


def test_each_line_has_its_number_empty_ones_counted(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = LogTail(path)
    path.write_bytes(b"one\n\n  \nfour\nto")
    assert tail.lines() == [(1, b"one"), (4, b"four")]
    with path.open("ab") as file:
        file.write(b"rn\nsix\n")
    assert tail.lines(1) == [(5, b"torn")]
    assert tail.lines() == [(6, b"six")]


def test_skip_passes_over_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    tail = LogTail(path)
    tail.skip()
    with path.open("ab") as file:
        file.write(b"two\n")
    assert tail.lines() == [(1, b"two")]


LINES = tuple(encode({"n": n, "text": "é" * n}) for n in range(4))


def test_a_torn_line_is_taken_away_wherever_it_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for cut in range(len(LINES[2])):
        path.write_bytes(LINES[0] + LINES[1] + LINES[2][:cut])
        with LogWriter(path) as log:
            log.append(LINES[3])
        assert path.read_bytes() == LINES[0] + LINES[1] + LINES[3]


def test_a_full_disk_leaves_no_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    write = os.write
    with LogWriter(path) as log:
        log.append(LINES[0])
        monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
        with pytest.raises(UserError, match="no space left"):
            log.append(LINES[1])
    assert path.read_bytes() == LINES[0]


@pytest.mark.parametrize("durable", [True, False])
def test_what_cannot_be_made_again_is_forced_to_the_disk(
    durable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(log_module, "fsync_fd", flushed.append)
    with LogWriter(tmp_path / "log", durable=durable) as log:
        log.append(LINES[0])
        log.append(LINES[1], LINES[2])
        assert len(flushed) == (2 if durable else 0)
        log.sync()
        assert len(flushed) == (3 if durable else 1)


def test_threads_and_processes_share_a_log_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    writers = [LogWriter(path) for _ in range(2)]

    def write(number: int) -> None:
        for _ in range(200):
            writers[number % 2].append(LINES[number])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for writer in writers:
        writer.close()
    assert sorted(line + b"\n" for _, line in LogTail(path).lines()) == sorted(LINES * 200)


def test_an_exclusive_writer_is_the_only_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with (
        LogWriter(path, exclusive=True),
        pytest.raises(UserError, match="another process writes this file"),
    ):
        LogWriter(path, exclusive=True)
    LogWriter(path, exclusive=True).close()


def test_without_locks_a_log_is_written_all_the_same_but_not_exclusively(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / "log"
    with LogWriter(path) as log:
        log.append(LINES[0])
    assert path.read_bytes() == LINES[0]
    with pytest.raises(UserError, match="this disk keeps no locks"):
        LogWriter(path, exclusive=True)


def test_a_closed_log_takes_nothing(tmp_path: Path) -> None:
    log = LogWriter(tmp_path / "log")
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.append(LINES[0])


def test_lines_of_earlier_versions_are_read_without_a_checksum() -> None:
    assert decode(b'{"n": 1}') == {"n": 1}
    assert decode(encode({"n": 1})) == {"n": 1}
    with pytest.raises(ValueError, match="checksum"):
        decode(encode({"n": 1}).replace(b"1,", b"2,"))
