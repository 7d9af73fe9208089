"""The process that generates answers for the compare screen.

Its output goes to `answers/worker.log` of the run. It tells the answers file first, which the screen follows.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from localdpo.launch import Job
from localdpo.records.answers import ANNOUNCEMENT, FOLDER, NOTE, AnswersRequest

LOG: Final = "worker.log"
WORKER: Final = (sys.executable, "-m", "localdpo.answering.worker")


class AnswersJob(Job):
    """A running process.

    Attributes:
        path: the answers file, None until the process has said it.
    """

    def __init__(self, request: AnswersRequest, command: Sequence[str] = ()) -> None:
        self.path: Path | None = None
        super().__init__(
            [*(command or WORKER), request.to_json()],
            request.run / FOLDER / LOG,
            "generation",
            "g goes on",
        )

    def poll(self) -> None:
        """Look for the announcement of the file."""
        if self.path is None:
            announced = [line for line in self.lines() if line.startswith(ANNOUNCEMENT)]
            if announced:
                self.path = Path(json.loads(announced[0].removeprefix(ANNOUNCEMENT)))

    def note(self) -> str | None:
        """What it said about damage that it passed over, in one line; None if there was none."""
        said = [line.removeprefix(NOTE) for line in self.lines() if line.startswith(NOTE)]
        return "; ".join(said) or None
