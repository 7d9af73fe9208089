"""Notifications of the desktop, through the terminal: OSC 9 or OSC 777, and its bell."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Final

from localdpo.core.text import printable
from localdpo.out import Escaped

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
