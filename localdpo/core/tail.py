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
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.offset = 0
        self.behind = False

    def skip(self, offset: int | None = None) -> None:
        """Pass over what is in the file now, or its first `offset` bytes: `poll` gives what comes after."""
        with contextlib.suppress(FileNotFoundError):
            self.offset = self.path.stat().st_size if offset is None else offset

    def poll(self, max_bytes: int | None = None) -> list[bytes]:
        """The lines that were ended since the last poll, without their ends; empty lines are left out.

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
        return [line for line in complete.split(b"\n") if line.strip()]
