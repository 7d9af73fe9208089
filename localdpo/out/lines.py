"""Lines of text and JSON for the standard streams."""

from __future__ import annotations

import json
import sys
from typing import Any

from localdpo.core.errors import DEVICE_EXIT, LocalDPOError
from localdpo.core.text import escaped, printable
from localdpo.records.deaths import error_hint


def say(text: str, *, error: bool = False) -> None:
    """Print `text`, line breaks and tabs included, on stdout, or on stderr if it is an `error`."""
    print(escaped(text), file=sys.stderr if error else sys.stdout, flush=True)


def say_errors(error: LocalDPOError) -> None:
    """One `error: ...` line on stderr for each problem."""
    for line in error.lines:
        say(f"error: {printable(line)}", error=True)


def say_device_error(error: RuntimeError | MemoryError) -> int:
    """Say that a device or memory gave up, and what to do, in one `error: ...` line; DEVICE_EXIT.

    Raises `error` again if it is anything else.
    """
    hint = error_hint(error)
    if hint is None:
        raise error
    say(f"error: {hint} ({printable(str(error)) or type(error).__name__})", error=True)
    return DEVICE_EXIT


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON in ASCII without control characters: neither a terminal nor an encoding changes it."""
    # json.dumps escapes every one but DEL.
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def print_json(value: Any) -> None:
    """Print `value` as JSON."""
    say(json_text(value, indent=1))
