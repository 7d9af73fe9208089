"""Reads a file of lines that other processes append to, again and again while it grows."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


class LineTail:
    """Gives each line once, when it has been ended; a torn last line is not seen until then.

    Any number of tails may read one file while it is written. A file that does not exist yet is empty.

    Attributes:
        offset: bytes taken in so far.
        behind: whether the last poll left lines unread because of `max_bytes`.
        is_cut: whether the file ended within a line at the last poll.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.offset = 0
        self.behind = False
        self.is_cut = False
        self._number = 0

    def skip(self, offset: int | None = None) -> None:
        """Pass over what is in the file now, or its first `offset` bytes: `poll` gives what comes after."""
        with contextlib.suppress(FileNotFoundError):
            self.offset = self.path.stat().st_size if offset is None else offset

    def poll(self, max_bytes: int | None = None) -> list[bytes]:
        """The lines that were ended since the last poll, without their ends; empty lines are left out.

        `max_bytes`: see `numbered`.
        """
        return [line for _, line in self.numbered(max_bytes)]

    def numbered(self, max_bytes: int | None = None) -> list[tuple[int, bytes]]:
        """The same with the number of each line, from 1 where the tail began to read.

        With `max_bytes` it reads that much and on to the end of the line, so that a long file can be taken in
        pieces; `behind` says whether more is there.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                block = file.read() if max_bytes is None else file.read(max_bytes) + file.readline()
                self.behind = max_bytes is not None and file.tell() < os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return []
        complete = block[: block.rfind(b"\n") + 1]
        self.offset += len(complete)
        self.is_cut = len(complete) < len(block)
        lines = complete.split(b"\n")[:-1]
        first = self._number + 1
        self._number += len(lines)
        return [(number, line) for number, line in enumerate(lines, first) if line.strip()]
