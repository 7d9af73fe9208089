"""A clock that counts only the time in which the run could work.

Three kinds of time do not count:

- A pause: `rest` sleeps and does not count it.
- SIGSTOP until SIGCONT. A process cannot see SIGSTOP, so a thread looks at the time ten times a second.
  When SIGCONT comes, everything since its last look was spent stopped, to within a tenth of a second. A gap
  between two looks alone is no proof, since other code may have kept the thread waiting: it takes the signal
  too, which Python writes into a pipe (see `SignalPipe`) also while the main thread is inside MLX.
- The machine's sleep. `time.monotonic` does not run then, on Linux and macOS alike; the clock that does run
  tells how long it was.

A container that is frozen from outside sends no signal, so its time is counted.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from localdpo.core.process import SignalPipe

_BEAT_SECONDS: Final = 0.1
# A gap that is too long for the thread's own rhythm, and how long to wait for the signal that explains it.
_GAP_SECONDS: Final = 0.3
_SIGNAL_SECONDS: Final = 0.05
# Shorter absences are not reported.
_REPORTED_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Absence:
    """Time in which the run could not work: stopped by SIGSTOP, or the machine slept. Seconds."""

    reason: Literal["SIGSTOP", "sleep"]
    seconds: float


class Clock:
    """Seconds of work. Without `install` only pauses and the machine's sleep do not count."""

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        awake_or_not: Callable[[], float] | None = None,
    ) -> None:
        self._monotonic = monotonic
        self._awake_or_not = awake_or_not or _with_sleep
        self._lock = threading.Lock()
        self._away = 0.0
        self._stopped = 0.0
        self._slept = self._sleep_so_far()
        self._last: float | None = None
        self._signals: SignalPipe | None = None

    def install(self) -> None:
        """Watch for SIGSTOP and SIGCONT of this process. Only from the main thread."""
        self._signals, self._last = SignalPipe([signal.SIGCONT]), self._monotonic()
        threading.Thread(target=self._beat_for_ever, name="clock", daemon=True).start()

    def now(self) -> float:
        """Seconds of work since some moment in the past."""
        self.look()
        return self._monotonic() - self._away

    def rest(self, seconds: float) -> None:
        """Sleep without counting it."""
        before = self.now()
        time.sleep(seconds)
        asleep = self.now() - before
        with self._lock:
            self._away += asleep

    def absences(self) -> list[Absence]:
        """The stops and sleeps of more than a second since the last call."""
        self.look()
        with self._lock:
            stopped, self._stopped = self._stopped, 0.0
            before, self._slept = self._slept, self._sleep_so_far()
        absences = [Absence("SIGSTOP", stopped), Absence("sleep", self._slept - before)]
        return [absence for absence in absences if absence.seconds > _REPORTED_SECONDS]

    def look(self) -> None:
        """Subtract the time since the last look if the process was stopped in it."""
        if self._signals is None or self._last is None:
            return
        with self._lock:
            continued = bool(self._signals.read())
            now = self._monotonic()
            gap = now - self._last
            if gap > _GAP_SECONDS and (continued or self._signals.read(_SIGNAL_SECONDS)):
                self._away += gap
                self._stopped += gap
            self._last = now

    def _beat_for_ever(self) -> None:
        assert self._signals is not None
        while True:
            self._signals.wait(_BEAT_SECONDS)
            self.look()

    def _sleep_so_far(self) -> float:
        return self._awake_or_not() - self._monotonic()


def _with_sleep() -> float:
    """Seconds on a clock that runs while the machine sleeps, unlike `time.monotonic`."""
    if sys.platform == "darwin":
        return time.clock_gettime(time.CLOCK_MONOTONIC)
    return time.clock_gettime(time.CLOCK_BOOTTIME)
