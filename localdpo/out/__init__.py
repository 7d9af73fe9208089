"""The one way to print to the terminal: control characters of any text are escaped.

`console.Console` and `console.Text` are rich's, for tables and bars. Every process calls `guard` first, which
also escapes what others print (warnings, tracebacks).
"""

from __future__ import annotations

from localdpo.out.streams import (
    UNREAD_EXIT,
    Escaped,
    OutputError,
    guard,
    json_text,
    print_json,
    say,
    say_device_error,
    say_errors,
)

__all__ = [
    "UNREAD_EXIT",
    "Escaped",
    "OutputError",
    "guard",
    "json_text",
    "print_json",
    "say",
    "say_device_error",
    "say_errors",
]
