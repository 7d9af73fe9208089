"""Lines of text and JSON for the standard streams."""

from __future__ import annotations

import json
import sys
from typing import Any

from localdpo.core.errors import LocalDPOError
from localdpo.core.wording import escaped, printable


def say(text: str, *, error: bool = False) -> None:
    """Print `text`, line breaks and tabs included, on stdout, or on stderr if it is an `error`."""
    print(escaped(text), file=sys.stderr if error else sys.stdout, flush=True)


def say_errors(error: LocalDPOError) -> None:
    """One `error: ...` line on stderr for each problem."""
    for line in error.lines:
        say(f"error: {printable(line)}", error=True)


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON in ASCII without control characters: neither a terminal nor an encoding changes it."""
    # json.dumps escapes every one but DEL.
    return json.dumps(value, indent=indent).replace("\x7f", "\\u007f")


def print_json(value: Any) -> None:
    """Print `value` as JSON."""
    say(json_text(value, indent=1))
