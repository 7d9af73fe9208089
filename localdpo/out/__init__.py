"""The one way out to the terminal: whatever text a line holds, it steers nothing.

`say`, `say_errors`, `say_device_error` and `print_json` print; `console.Console` and `console.Text` are
rich's, for tables and bars. `guard` puts both standard streams behind a filter, so that what others print
(usage errors, warnings, tracebacks) is escaped as well; every process calls it first.
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
