"""The one way to print to the terminal: control characters of any text are escaped.

`say` prints lines, `result` what a command is asked for, `note` narrates on stderr; `console.Console` and
`console.Text` are rich's, for tables and bars.
`notify` has the terminal show a notification of the desktop.
Every process calls `guard` first, which also escapes what others print (warnings, tracebacks).
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final, NoReturn, TextIO

from localdpo.core.errors import DEVICE_EXIT, LocalDPOError
from localdpo.core.text import escaped, printable
from localdpo.records.deaths import error_hint

# As a shell names the end of a program by SIGPIPE.
UNREAD_EXIT: Final = 141
_NOBODY_READS: Final = (errno.EPIPE, errno.EIO)
# How tqdm, which shows downloads, goes back to the line of a bar.
_BACK: Final = re.compile(r"\r|(?:\x1b\[A)+")


class Escaped(str):
    """Text that is ready for the terminal: its user's text is escaped, its codes are the program's own."""


class OutputError(OSError):
    """A standard stream cannot be written, usually because the disk is full."""


def guard() -> None:
    """Put stdout and stderr behind the filter; done once by every process, before it prints."""
    if sys.stdout is not None and not isinstance(sys.stdout, _Guarded):
        sys.stdout = _Guarded(sys.stdout)
    if sys.stderr is not None and not isinstance(sys.stderr, _Guarded):
        sys.stderr = _Guarded(sys.stderr)


def raw_stdout() -> contextlib.redirect_stdout[TextIO | None]:
    """While this lasts, stdout is without the filter: for a protocol whose messages escape their texts."""
    return contextlib.redirect_stdout(sys.__stdout__)


def has_screen() -> bool:
    """Whether a program can take the whole screen: keys come from a terminal, and it can be drawn on."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def say(text: str, *, error: bool = False, end: str = "\n") -> None:
    """Print `text`, line breaks and tabs included, on stdout, or on stderr if it is an `error`."""
    print(escaped(text), file=sys.stderr if error else sys.stdout, end=end, flush=True)


def flush() -> None:
    """Hand over what was written, before the process is ended without its own end."""
    sys.stdout.flush()
    sys.stderr.flush()


def note(line: str) -> None:
    """Narrate: print text as one line on stderr, so that stdout holds the result alone."""
    say(printable(line), error=True)


def say_errors(error: LocalDPOError) -> None:
    """One `error: ...` line on stderr for each problem."""
    for line in error.lines:
        say(f"error: {printable(line)}", error=True)


def say_device_error(error: RuntimeError | MemoryError) -> int:
    """Report that a device failed or memory ran out, and what to do, in one `error: ...` line; DEVICE_EXIT.

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


def result(value: Any, lines: Iterable[str], *, as_json: bool) -> None:
    """Print the result of a command: `value` as JSON, or `lines` for people."""
    if as_json:
        print_json(value)
    else:
        say("\n".join(lines))


class _Guarded(io.TextIOBase):
    """Writes text escaped, unless it is Escaped, to `stream`; what its encoding lacks as an escape, too.

    A reader that has gone (`| head`) ends the process quietly. There is no `buffer`: bytes would get round
    the filter.
    """

    def __init__(self, stream: TextIO) -> None:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
        self._stream = stream
        self._is_fresh = True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self._stream.errors

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        shown = text if isinstance(text, Escaped) else self._filtered(text)
        try:
            self._stream.write(shown)
        except OSError as error:
            self._give_up(error)
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _filtered(self, text: str) -> str:
        """`text` escaped. Only a bar may go back to the line's beginning, where nothing else stands in it."""
        back = _BACK.match(text) if self._is_fresh else None
        lead = back[0] if back else ""
        if text:
            self._is_fresh = bool(lead) or text.endswith("\n")
        return lead + escaped(text[len(lead) :])

    def _give_up(self, error: OSError) -> NoReturn:
        # What is still to be written goes nowhere, or the interpreter would complain of it at the end.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        if error.errno in _NOBODY_READS:
            raise SystemExit(UNREAD_EXIT) from None
        raise OutputError(error.errno, error.strerror) from error


_TITLE: Final = "localdpo"
_LONGEST: Final = 200


def notification(text: str, environment: Mapping[str, str] = os.environ) -> Escaped:
    """The codes that have the terminal show `text` as a notification and ring its bell.

    OSC 777 where the terminal is known to have only that (urxvt, foot, those made of VTE), else OSC 9, which
    iTerm2, Ghostty, kitty, WezTerm and Windows Terminal show and others ignore. tmux passes them on where its
    option allow-passthrough is on. A terminal that knows no codes (TERM=dumb) has its bell rung only.
    """
    if environment.get("TERM") == "dumb":
        return Escaped("\x07")
    shown = printable(text)[:_LONGEST]
    is_777 = environment.get("TERM", "").startswith(("rxvt", "foot")) or "VTE_VERSION" in environment
    code = f"\x1b]777;notify;{_TITLE};{shown}\x07" if is_777 else f"\x1b]9;{_TITLE}: {shown}\x07"
    if environment.get("TMUX"):
        code = "\x1bPtmux;" + code.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    return Escaped(f"{code}\x07")


def notify(text: str) -> None:
    """Show `text` as a notification, if stdout or stderr is a terminal."""
    # While a bar is up, rich stands before both and would print the codes as text.
    streams = (getattr(stream, "rich_proxied_file", stream) for stream in (sys.stdout, sys.stderr))
    stream = next((stream for stream in streams if stream.isatty()), None)
    if stream is not None:
        stream.write(notification(text))
        stream.flush()
