"""Rendering is throttled: training comes first, and one on the CPU shares its cores with the viewer.

Keys do not wait: what they change is drawn by their actions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple


class Interval:
    """Something that is done at most once in `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = -math.inf

    @property
    def has_passed(self) -> bool:
        """Whether `seconds` have passed since `restart`; true before the first."""
        return time.monotonic() - self._last >= self._seconds

    def restart(self) -> None:
        """It was done now."""
        self._last = time.monotonic()

    def expire(self) -> None:
        """It may be done again at once."""
        self._last = -math.inf


class CpuLimit(NamedTuple):
    """`share` of one core in the long run, `burst` processor seconds at once, `longest` wait in seconds."""

    share: float
    burst: float
    longest: float


IDLE_CPU: Final = CpuLimit(share=0.1, burst=0.2, longest=0.6)
# Measured on two cores that were both at work: a second of drawing costs the training about as much.
TRAINING_ON_CPU: Final = CpuLimit(share=0.005, burst=3.0, longest=8.0)


class RenderThrottle:
    """Says when the next frame may be drawn.

    A frame is due while there is credit. Credit grows with time and is spent by the processor time of this
    process. A training on a GPU hardly notices a viewer, so the viewer may draw as often as the log grows;
    beside one on the CPU it may do so for a short while, and then a few frames a minute.

    `clock`: seconds; `used`: processor seconds of this process.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, used: Callable[[], float] = time.process_time
    ) -> None:
        self._clock, self._used = clock, used
        self._last_look, self._last_used = clock(), used()
        self._last_frame = self._last_look
        self._credit = {limit: limit.burst for limit in (IDLE_CPU, TRAINING_ON_CPU)}

    def is_due(self, *, beside_training: bool) -> bool:
        """Whether a frame may be drawn. `beside_training`: whether a training wants the same cores.

        One is due after `longest` seconds whatever was spent: keys held down spend without a frame of ours.
        """
        now, used = self._clock(), self._used()
        for limit, credit in self._credit.items():
            credit += (now - self._last_look) * limit.share - (used - self._last_used)
            # Debts are forgotten beyond what `longest` pays.
            self._credit[limit] = min(max(credit, -limit.longest * limit.share), limit.burst)
        self._last_look, self._last_used = now, used
        limit = TRAINING_ON_CPU if beside_training else IDLE_CPU
        is_due = self._credit[limit] >= 0 or now - self._last_frame >= limit.longest
        if is_due:
            self._last_frame = now
        return is_due
