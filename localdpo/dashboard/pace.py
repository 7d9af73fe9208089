"""When the next frame may be drawn. Training comes first: one on the CPU shares its cores with the viewer.

A frame is due while there is credit. Credit grows with time and is spent by the processor time of this
process. A training on a GPU hardly notices a viewer, so it may draw as often as the log grows; beside one on
the CPU it may do so for a short while, and then some frames a minute. Keys do not wait for credit: what they
change is drawn by their actions.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple


class Ration(NamedTuple):
    """`share` of one core in the long run, `burst` processor seconds at once, `longest` wait in seconds."""

    share: float
    burst: float
    longest: float


FREE: Final = Ration(share=0.1, burst=0.2, longest=0.6)
# Measured on two cores that were both at work: a second of drawing costs the training about as much.
BESIDE_TRAINING: Final = Ration(share=0.005, burst=3.0, longest=8.0)


class Pace:
    """Rations frames. `clock`: seconds; `used`: processor seconds of this process."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, used: Callable[[], float] = time.process_time
    ) -> None:
        self._clock, self._used = clock, used
        self._looked, self._before = clock(), used()
        self._drew = self._looked
        self._credit = {ration: ration.burst for ration in (FREE, BESIDE_TRAINING)}

    def is_due(self, *, beside_training: bool) -> bool:
        """Whether a frame may be drawn. `beside_training`: whether a training wants the same cores.

        One is due after `longest` seconds whatever was spent: keys held down spend without a frame of ours.
        """
        now, used = self._clock(), self._used()
        for ration, credit in self._credit.items():
            credit += (now - self._looked) * ration.share - (used - self._before)
            # Debts are forgotten beyond what `longest` pays.
            self._credit[ration] = min(max(credit, -ration.longest * ration.share), ration.burst)
        self._looked, self._before = now, used
        ration = BESIDE_TRAINING if beside_training else FREE
        is_due = self._credit[ration] >= 0 or now - self._drew >= ration.longest
        if is_due:
            self._drew = now
        return is_due
