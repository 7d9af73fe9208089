"""Ctrl-C and SIGTERM while a worker is watched: both are passed on, so that it saves before it stops."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Final

from localdpo.core.signals import SignalPipe, StopRequests
from localdpo.launch import Worker

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_ANSWERS: Final = (
    "stopping: the worker saves at the end of this step (again: stop at once, unsaved)",
    "stopping at once",
)


class Interrupts:
    """While this context lasts, the first signal asks the worker to save and stop, the second to stop now.

    The worker sits in its own session, so the terminal's Ctrl-C does not reach it by itself. A signal that
    comes before `pass_to` is kept for the worker. The handler prints nothing (it may have come in the middle
    of a print); `tell` does, outside of it.
    """

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._signals: SignalPipe | None = None
        self._requests = StopRequests()
        self._told = 0
        self.by_keyboard = False

    def __enter__(self) -> Interrupts:
        self._signals = SignalPipe(_SIGNALS, self._take)
        self._take()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._signals is not None:
            self._signals.close()

    def pass_to(self, worker: Worker) -> None:
        """From now on signals go to `worker`; one that came earlier goes at once."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._worker = worker
        if self._requests.count > 0:
            worker.interrupt(at_once=self._requests.count > 1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def tell(self, say: Callable[[str], None]) -> None:
        """Say what the signals since the last call do."""
        due = _ANSWERS[self._told : self._requests.count]
        self._told += len(due)
        for line in due:
            say(line)

    def _take(self) -> None:
        if self._signals is None:
            return
        for number in self._signals.read():
            self.by_keyboard = self.by_keyboard or number == signal.SIGINT
            if self._requests.take(number, time.monotonic()) and self._worker is not None:
                self._worker.interrupt(at_once=self._requests.count > 1)
