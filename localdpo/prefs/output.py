"""JSON lines written one by one into a file that is there in full or not at all."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from localdpo.core.atomic import no_space_error, out_of_space, published_file
from localdpo.core.errors import UserError

SUFFIXES = (".jsonl", ".ndjson")
Put = Callable[[Mapping[str, Any]], None]


def check_output(path: Path, *, force: bool) -> None:
    """Raise UserError unless `path` can become a new JSONL file."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: rows are written as JSON lines; give a name that ends in .jsonl")
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist")
    if path.exists() and not force:
        raise UserError(f"{path}: exists already; give another name, or --force to replace it")


@contextlib.contextmanager
def json_lines(path: Path) -> Iterator[Put]:
    """Gives a function that takes a row; the file gets its name when the block ends without an error.

    Memory: one row. Raises UserError when the disk is full, or the folder cannot be written.
    """
    written = 0
    try:
        with published_file(path) as file:

            def put(row: Mapping[str, Any]) -> None:
                nonlocal written
                written += file.write(as_line(row))

            yield put
    except OSError as error:
        if out_of_space(error):
            raise no_space_error(path, written) from error
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def as_line(row: Mapping[str, Any]) -> bytes:
    """A row as one line of JSON. Values that JSON has no word for (times of Arrow) become text.

    Half of a surrogate pair, which UTF-8 has no bytes for, stays as JSON's escape.
    """
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row, default=str).encode() + b"\n"
