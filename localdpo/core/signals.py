"""How often a process was asked to stop by signal, where one request may come twice."""

from __future__ import annotations

from typing import Final

# A system that shuts down signals worker and supervisor alike, and the supervisor passes its own on.
_ECHO_SECONDS: Final = 1.0


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
