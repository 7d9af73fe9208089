"""Runs an app, and sees to it that the process ends when it is told to, or its terminal goes.

Textual writes to the terminal from a thread with a short queue. When the terminal is gone, that thread dies,
the queue fills, and the app waits for ever to put the next frame in: neither SIGTERM nor anything else that
the event loop would have to handle gets through to it then. So a thread of ours, which waits for nothing that
the app holds, looks after the terminal and ends the process when the app does not.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import termios
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from textual.app import App

_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_LOOK_SECONDS: Final = 0.5
# How long an app that was told to leave may take, before the process is ended under it.
_GRACE_SECONDS: Final = 3.0
# Back to the plain screen: no mouse, paste, focus or key reports, lines wrapped, the cursor shown.
_PLAIN_SCREEN: Final = (
    b"\x1b[?1000l\x1b[?1003l\x1b[?1015l\x1b[?1006l\x1b[?2004l\x1b[?1004l\x1b[?2048l\x1b[?7h\x1b[<u"
    b"\x1b[?1049l\x1b[?25h"
)


def run_app(app: App[Any]) -> None:
    """Run `app` in the main thread until it is left, a signal comes, or its terminal goes."""
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        watch = _Watch(lambda: loop.call_soon_threadsafe(app.exit))
        before = {number: signal.signal(number, watch.handle) for number in _SIGNALS}
        watch.start()
        try:
            runner.run(app.run_async())
        finally:
            watch.stop()
            for number, handler in before.items():
                signal.signal(number, handler)


class _Watch(threading.Thread):
    """Calls `leave` when a signal came or the terminal is gone; the process has `_GRACE_SECONDS` then."""

    def __init__(self, leave: Callable[[], object]) -> None:
        super().__init__(name="terminal", daemon=True)
        self._leave = leave
        self._told = threading.Event()
        self._number: int | None = None
        self._ttys = [fd for fd in (0, 2) if os.isatty(fd)]
        self._modes = termios.tcgetattr(self._ttys[0]) if self._ttys else None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self._number = number
        self._told.set()

    def stop(self) -> None:
        """The app has ended. After a signal the process is still to end in time."""
        self._told.set()

    def run(self) -> None:
        while not self._told.wait(_LOOK_SECONDS):
            if any(map(_is_gone, self._ttys)):
                self.handle(signal.SIGHUP, None)
        if self._number is None:
            return
        with contextlib.suppress(RuntimeError):  # the event loop is closed: the app has ended by itself
            self._leave()
        threading.Event().wait(_GRACE_SECONDS)
        self._restore()
        os._exit(128 + self._number)

    def _restore(self) -> None:
        """Give the terminal back as it was, without waiting for one that takes nothing."""
        if self._modes is None:
            return
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(self._ttys[0], termios.TCSANOW, self._modes)
            fd = os.open(os.ttyname(self._ttys[0]), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            os.write(fd, _PLAIN_SCREEN)
            os.close(fd)


def _is_gone(tty: int) -> bool:
    try:
        termios.tcgetattr(tty)
    except termios.error:
        return True
    return False
