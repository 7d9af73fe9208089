"""How much may be spent: the worst case of every question in flight is set aside before it is asked."""

from __future__ import annotations

import math
import threading
from typing import Final

from localdpo.judging.base import JudgeStopped
from localdpo.judging.retry import Interrupted

_LOOK_AGAIN: Final = 0.2  # seconds; how soon a waiting thread sees that the run is being stopped


class Budget:
    """US dollars that the questions of one command may cost, shared by all its threads.

    `spent` plus what is set aside for questions in flight never exceeds `max_usd`; None is no limit.
    """

    def __init__(self, max_usd: float | None = None) -> None:
        if max_usd is not None and not (math.isfinite(max_usd) and max_usd >= 0):
            raise ValueError(f"max_usd must be a number >= 0, not {max_usd!r}")
        self.max_usd = max_usd
        self.spent = 0.0
        self._reserved = 0.0
        self._in_flight = 0
        self._changed = threading.Condition()

    def reserve(self, worst_usd: float, stop: threading.Event) -> None:
        """Set the worst case of one question aside; waits while others in flight may give some back.

        Raises JudgeStopped when it does not fit although nothing is in flight, or when the price is not
        known (infinity) and there is a limit; Interrupted when `stop` is set while waiting.
        """
        with self._changed:
            while not self._fits(worst_usd):
                if self._in_flight == 0 or math.isinf(worst_usd):
                    raise self._too_much(worst_usd)
                if stop.is_set():
                    raise Interrupted("waiting for the budget")
                self._changed.wait(_LOOK_AGAIN)
            self._in_flight += 1
            self._reserved += self._finite(worst_usd)

    def settle(self, worst_usd: float, usd: float) -> None:
        """Give back what was set aside for one question, and book what it did cost."""
        with self._changed:
            self._in_flight -= 1
            # Sums of floats leave dust behind; with nothing in flight nothing is set aside.
            self._reserved = self._reserved - self._finite(worst_usd) if self._in_flight else 0.0
            self.spent += self._finite(usd)
            self._changed.notify_all()

    def _fits(self, worst_usd: float) -> bool:
        return self.max_usd is None or self.spent + self._reserved + worst_usd <= self.max_usd

    def _too_much(self, worst_usd: float) -> JudgeStopped:
        if math.isinf(worst_usd):
            return JudgeStopped(
                "the price of this model is not known, so a limit cannot be kept: "
                "add the model to a file of prices"
            )
        return JudgeStopped(
            f"the limit of ${self.max_usd:.2f} is reached: ${self.spent:.4f} spent, and what comes next may "
            f"cost ${worst_usd:.4f}; what was answered is kept, run the same command with a higher limit"
        )

    @staticmethod
    def _finite(usd: float) -> float:
        return usd if math.isfinite(usd) else 0.0
