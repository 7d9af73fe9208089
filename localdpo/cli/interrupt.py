"""Ctrl-C and SIGTERM while a worker is watched: both are passed on, so that it saves before it stops."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

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
        self._count = 0
        self._told = 0
        self._before: dict[signal.Signals, Any] = {}
        self.by_keyboard = False

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_to(self, worker: Worker) -> None:
        """From now on signals go to `worker`; one that came earlier goes at once."""
        self._worker = worker
        if self._count > 0:
            worker.interrupt()

    def tell(self, say: Callable[[str], None]) -> None:
        """Say what the signals since the last call do."""
        due = _ANSWERS[self._told : self._count]
        self._told += len(due)
        for line in due:
            say(line)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        self.by_keyboard = self.by_keyboard or number == signal.SIGINT
        if self._worker is not None:
            self._worker.interrupt()
