"""Append-only logs: JSON objects, one a line, which other processes read while they grow.

    {"prompt":0,"text":"four","crc":"10e22b0e"}

Events, answers, votes, verdicts and labels are such logs, and one rule holds for all:

- A line is one os.write on an O_APPEND descriptor, under the file's lock (flock) where the disk has locks.
- A last line without its newline is what a killed writer leaves. Readers do not see it; the next writer takes
  it away. A full disk leaves none: what was written of the line is taken away at once.
- `crc`, the last field, is the CRC-32 of every byte before its comma, as eight hexadecimal digits. It is
  compared before anything is parsed, so that damage which is still JSON is not believed. Lines without it (of
  earlier versions, or written by hand) are read as they are.
- What cannot be made again (what a person said, what was paid for) is forced to the disk line by line; the
  rest when `sync` is called.

`as_record` makes dataclasses of what was read, by the types that their fields declare.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, Self, TypeVar, get_args, get_origin, get_type_hints

from localdpo.core.atomic import fsync_dir, fsync_fd, is_unsupported, no_space_error, out_of_space
from localdpo.core.errors import UserError
from localdpo.core.text import is_number

_MARK: Final = b',"crc":"'
_NAME: Final = b'"crc":'
_DIGITS: Final = 8
_END: Final = b'"}'
_LENGTH: Final = len(_MARK) + _DIGITS + len(_END)
T = TypeVar("T")
# What reading a field of a line that another program wrote may raise.
DAMAGE: Final = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)


def seal(text: str) -> bytes:
    """The UTF-8 form of the text of a JSON object that is not empty, with its checksum, ended by a newline.

    A lone surrogate (in a damaged answer) has no UTF-8 form and is replaced.
    """
    body = text.rstrip().encode("utf-8", errors="replace").removesuffix(b"}")
    return b"%s%s%08x%s\n" % (body, _MARK, zlib.crc32(body), _END)


def unseal(line: bytes) -> bytes:
    """The JSON object without its checksum. Raises ValueError when it is not as it was written."""
    line = line.rstrip()
    tail = line[-_LENGTH:]
    if not (tail.startswith(_MARK) and tail.endswith(_END)):
        # Quotes within a text are escaped, so this is the field, cut or changed.
        if _NAME in line[-2 * _LENGTH :]:
            raise ValueError("damaged: its checksum is cut off or malformed")
        return line
    body = line[:-_LENGTH]
    if tail[len(_MARK) : -len(_END)] != b"%08x" % zlib.crc32(body):
        raise ValueError("damaged: its checksum is another one")
    return body + b"}"


def encode(entry: Mapping[str, Any]) -> bytes:
    """The line of an entry."""
    return seal(json.dumps(entry, ensure_ascii=False, separators=(",", ":")))


def decode(line: bytes) -> Any:
    """The JSON value of a line or of a sealed file. Raises ValueError or RecursionError for damage."""
    return json.loads(unseal(line))


def read_sealed(path: Path, parse: Callable[[Any], T], what: str) -> T:
    """What `parse` makes of the object in a file that was written at once; cached until the file changes.

    Raises UserError when the file cannot be read, is damaged, or is not `what`.
    """
    try:
        with path.open("rb") as file:
            # A disk may count time in seconds, and two writes fall into one: the checksum tells them apart.
            changed = os.fstat(file.fileno())
            file.seek(max(0, changed.st_size - _LENGTH - 1))
            version = (changed.st_mtime_ns, changed.st_size, file.read())
        return _read_sealed(path, version, parse, what)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


@lru_cache(maxsize=256)
def _read_sealed(path: Path, version: object, parse: Callable[[Any], T], what: str) -> T:
    try:
        return parse(decode(path.read_bytes()))
    except DAMAGE as error:
        raise UserError(f"{path}: not {what} ({type(error).__name__}: {error})") from error


class LogWriter:
    """Appends to one log, which is made when it is missing. A context manager, for any number of threads.

    `durable`: whether each write is forced to the disk. `exclusive`: whether this is the only writer for as
    long as it lives; else other processes may write between two lines.

    Raises UserError when the disk is full, and for `exclusive` when another process writes the log or the
    disk has no locks.
    """

    def __init__(self, path: str | Path, *, durable: bool = False, exclusive: bool = False) -> None:
        self.path = Path(path)
        self._durable, self._exclusive = durable, exclusive
        self._mutex = threading.Lock()
        is_new = durable and not self.path.exists()
        self._fd: int | None = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        if is_new:
            fsync_dir(self.path.parent)
        if exclusive:
            try:
                self._lock_for_good()
            except BaseException:
                self.close()
                raise

    def append(self, *lines: bytes) -> None:
        """Add lines that `encode` made in one write: a kill leaves all of them or none.

        ValueError when the writer is closed.
        """
        if self._fd is None:
            raise ValueError(f"{self.path}: this log's writer is closed")
        data = b"".join(lines)
        with self._mutex, self._locked(self._fd):
            self._drop_torn_line(self._fd)
            end = os.fstat(self._fd).st_size
            try:
                written = os.write(self._fd, data)
            except OSError as error:
                if out_of_space(error):
                    raise no_space_error(self.path, len(data)) from error
                raise
            if written < len(data):  # a full disk shows itself as a short write first
                os.ftruncate(self._fd, end)
                raise no_space_error(self.path, len(data) - written)
        if self._durable:
            self.sync()

    def sync(self) -> None:
        """Force the log to the disk."""
        if self._fd is not None:
            fsync_fd(self._fd)

    def close(self) -> None:
        """Let go of the file and its lock; appending afterwards is a ValueError."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _lock_for_good(self) -> None:
        assert self._fd is not None
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{self.path}: another process writes this file; wait for it") from None
        except OSError as error:
            if not is_unsupported(error):
                raise
            raise UserError(
                f"{self.path}: this disk keeps no locks ({error.strerror}), so two processes could write "
                "this file; copy its folder to another disk"
            ) from error
        self._drop_torn_line(self._fd)

    @contextlib.contextmanager
    def _locked(self, fd: int) -> Iterator[None]:
        if self._exclusive or not _flock(fd, fcntl.LOCK_EX):
            yield
            return
        try:
            yield
        finally:
            _flock(fd, fcntl.LOCK_UN)

    @staticmethod
    def _drop_torn_line(fd: int) -> None:
        size = os.fstat(fd).st_size
        if size == 0 or os.pread(fd, 1, size - 1) == b"\n":
            return
        content = os.pread(fd, size, 0)
        os.ftruncate(fd, content.rfind(b"\n") + 1)


def _flock(fd: int, operation: int) -> bool:
    """Whether the disk has locks. Where it has none, writers go on: two could only harm each other while one
    takes a torn line away.
    """
    try:
        fcntl.flock(fd, operation)
    except OSError as error:
        if not is_unsupported(error):
            raise
        return False
    return True


class LogTail:
    """Reads a log, again and again while it grows. Each line comes once, when it has been ended.

    Any number of tails may read one log while it is written. A log that does not exist yet is empty.

    Attributes:
        offset: bytes taken in so far.
        behind: whether the last call left lines unread because of `max_bytes`.
        is_cut: whether the file ended within a line at the last call.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.offset = 0
        self.behind = False
        self.is_cut = False
        self._number = 0

    def skip(self, offset: int | None = None) -> None:
        """Pass over what is in the file now, or its first `offset` bytes."""
        with contextlib.suppress(FileNotFoundError):
            self.offset = self.path.stat().st_size if offset is None else offset

    def lines(self, max_bytes: int | None = None) -> list[tuple[int, bytes]]:
        """The lines that were ended since the last call, without their ends, each with its number.

        Numbers count from 1 where the tail began to read; empty lines are counted and skipped. With
        `max_bytes` it reads that much and on to the end of the line, so that a long file can be taken in
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
        ended = complete.split(b"\n")[:-1]
        first = self._number + 1
        self._number += len(ended)
        return [(number, line) for number, line in enumerate(ended, first) if line.strip()]


def as_record(kind: type[T], entry: Mapping[str, Any], version: int | None = None, **others: Any) -> T:
    """The dataclass `kind` of an object of JSON, at any depth.

    Fields may be of str, int, float, bool, Path, Any, Literal, other dataclasses, and tuples, lists and
    mappings of these, or None. Where a float was not finite null is written, which is read as NaN. A member
    without a field is ignored, and a field with a default need not be there. `others`: fields that are taken
    from here; `version`: what its member `v` must be. ValueError names the member that is missing or of
    another type.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"expected an object, got {entry!r:.40}")
    if version is not None and entry.get("v") != version:
        raise ValueError(f"version {entry.get('v')}, expected {version}")
    values, hints = dict(others), _hints(kind)
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name in others:
            continue
        if field.name in entry:
            values[field.name] = _value(hints[field.name], entry[field.name], field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"{field.name} is missing")
    return kind(**values)


_hints: Callable[[Any], dict[str, Any]] = lru_cache(get_type_hints)


def _value(kind: Any, value: Any, name: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if NoneType in args:
        return None if value is None else _value(args[0], value, name)
    if kind is Any or (origin is Literal and value in args) or type(value) is kind:
        return value
    if kind is float and (value is None or is_number(value)):
        return math.nan if value is None else float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if isinstance(value, dict):
        if isinstance(kind, type) and is_dataclass(kind):
            return as_record(kind, value)
        if origin in (dict, Mapping):
            return {key: _value(args[1], item, f"{name}.{key}") for key, item in value.items()}
    if isinstance(value, list) and origin in (tuple, list):
        kinds = args[:1] * len(value) if origin is list or args[-1] is ... else args
        if len(value) == len(kinds):
            return origin(_value(of, item, name) for of, item in zip(kinds, value, strict=True))
    raise ValueError(f"{name}: expected {getattr(kind, '__name__', kind)}, got {value!r:.40}")
