"""Rows of JSON files, read one at a time, with the place and the reason of every row that is not one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

from localdpo.core.errors import UserError

NumberedRow: TypeAlias = "tuple[int, dict[str, Any] | None, str]"
"""(row number from 0, fields or None, what is wrong or "")"""

_BOM = b"\xef\xbb\xbf"


def json_line_rows(path: Path) -> Iterator[NumberedRow]:
    """One row per line; blank lines are passed over and keep their number. Memory: one line."""
    with path.open("rb") as file:
        for number, line in enumerate(file):
            content = line.removeprefix(_BOM) if number == 0 else line
            if content.strip():
                yield _parse_line(number, content)


def json_array_rows(path: Path, name: str) -> Iterator[NumberedRow]:
    """One row per element of the file's array. Memory: the file's text and one row.

    Raises UserError where the text stops being JSON: nothing after that place can be told apart.
    """
    try:
        text = path.read_bytes().removeprefix(_BOM).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    decoder = json.JSONDecoder()
    place, number = _skip_space(text, text.index("[") + 1), 0
    while text[place : place + 1] != "]":
        try:
            value, place = decoder.raw_decode(text, place)
            place = _skip_space(text, place)
            if text[place : place + 1] == ",":
                place = _skip_space(text, place + 1)
            elif text[place : place + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, place)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}:{number + 1}: not valid JSON: {error}") from error
        yield _checked(number, value)
        number += 1


def _parse_line(number: int, content: bytes) -> NumberedRow:
    try:
        return _checked(number, json.loads(content.decode("utf-8")))
    except UnicodeDecodeError as error:
        return number, None, f"byte {error.start + 1} is not UTF-8; save the file as UTF-8"
    except json.JSONDecodeError as error:
        return number, None, f"not valid JSON at column {error.colno}: {error.msg}"
    except ValueError as error:
        return number, None, f"not valid JSON: {error}"
    except RecursionError:
        return number, None, "not usable JSON: nested too deep"


def _checked(number: int, value: Any) -> NumberedRow:
    if not isinstance(value, dict):
        return number, None, "expected an object with named fields"
    return number, value, ""


def _skip_space(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\n", "\r", "\t"):
        place += 1
    return place
