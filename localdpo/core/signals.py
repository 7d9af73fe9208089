"""Signals that ask a process to stop: none is lost, and the second ends it whatever it is doing."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Final

# A system that shuts down signals worker and supervisor alike, and the supervisor passes its own on.
_ECHO_SECONDS: Final = 1.0
_RESETHAND: Final = 0x4 if sys.platform == "darwin" else 0x80000000


class StopRequests:
    """Counts the requests behind SIGINT and SIGTERM: the first asks to save and stop, the second to stop now.

    SIGTERM and SIGINT within a second are one request. Two of the same kind are two, however close: a person
    who presses Ctrl-C twice means it.
    """

    def __init__(self) -> None:
        self.count = 0
        self._first: tuple[int, float] | None = None

    def take(self, number: int, now: float) -> bool:
        """Whether the signal `number`, which came at the monotonic time `now`, is a new request."""
        if self._first is None:
            self._first = (number, now)
        else:
            kind, when = self._first
            if number != kind and now - when < _ECHO_SECONDS:
                return False
        self.count += 1
        return True


class SignalPipe:
    """The signals that come to this process, one by one and in order, read where it suits.

    Python runs a handler once for several signals of a kind that come within one call into C, and only after
    that call; the pipe has each of them at once. `handler` is what Python runs then, without arguments.
    One a process, from its main thread.
    """

    def __init__(self, numbers: Iterable[int], handler: Callable[[], None] = lambda: None) -> None:
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._wakeup = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)

        def handle(number: int, frame: FrameType | None) -> None:
            handler()

        self._before: dict[int, Any] = {number: signal.signal(number, handle) for number in numbers}

    def read(self, timeout: float | None = 0.0) -> list[int]:
        """The signals since the last call; waits `timeout` seconds for the first, without end if None."""
        if not select.select([self._reading], [], [], timeout)[0]:
            return []
        return [number for number in os.read(self._reading, 4096) if number in self._before]

    def close(self) -> None:
        """Give the signals back to whom they belonged before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        os.close(self._reading)
        os.close(self._writing)


class _Action(ctypes.Structure):
    """`struct sigaction` of Linux (glibc and musl, 64 bits) and of macOS."""

    _fields_ = (
        [("handler", ctypes.c_void_p), ("mask", ctypes.c_uint32), ("flags", ctypes.c_uint32)]
        if sys.platform == "darwin"
        else [
            ("handler", ctypes.c_void_p),
            ("mask", ctypes.c_uint64 * 16),
            ("flags", ctypes.c_uint32),
            ("restorer", ctypes.c_void_p),
        ]
    )


def handle_once(number: int, handler: Callable[[int, FrameType | None], None]) -> None:
    """Handle the first signal `number`; the second ends the process, as if there were no handler.

    The kernel does that (SA_RESETHAND), so it works in the middle of a call into C that never comes back, and
    whoever holds the interpreter's lock. `signal.signal` has no such option.
    """
    signal.signal(number, handler)
    libc, action = ctypes.CDLL(None, use_errno=True), _Action()
    if libc.sigaction(number, None, ctypes.byref(action)) == 0:
        action.flags |= _RESETHAND
        if libc.sigaction(number, ctypes.byref(action), None) == 0:
            return
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
