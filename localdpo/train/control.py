"""What may interrupt a run between two steps: signals."""

from __future__ import annotations

import os
import signal
from types import FrameType


class StopRequest:
    """SIGINT and SIGTERM ask the run to save and stop at the next step; a second one ends it at once.

    Attributes:
        reason: the signal's name once it came, else None.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def install(self) -> None:
        """Take over the two signals of this process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None:
            os._exit(128 + number)
        self.reason = signal.Signals(number).name
