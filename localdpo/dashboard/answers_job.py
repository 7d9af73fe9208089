"""The process that generates answers for the compare screen, and what it says.

Its output goes to `answers/worker.log` of the run. It tells the answers file first, which the screen follows;
errors that a person can mend come as `error: ...` lines.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from localdpo.core.answers import FOLDER
from localdpo.core.answers_request import ANNOUNCEMENT, WORKER_MODULE, AnswersRequest
from localdpo.core.errors import USER_ERROR_EXIT
from localdpo.core.wording import printable

LOG: Final = "worker.log"


class AnswersJob:
    """A running process. Raises OSError if it cannot be started.

    Attributes:
        path: the answers file, None until the process has said it.
    """

    def __init__(self, request: AnswersRequest, command: Sequence[str] = ()) -> None:
        folder = request.run / FOLDER
        folder.mkdir(exist_ok=True)
        self._log = folder / LOG
        self.path: Path | None = None
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*(command or (sys.executable, "-m", WORKER_MODULE)), request.to_json()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    def poll(self) -> None:
        """Look for the announcement of the file."""
        if self.path is None:
            for line in self._lines():
                if line.startswith(ANNOUNCEMENT):
                    self.path = Path(line.removeprefix(ANNOUNCEMENT))
                    return

    def problem(self) -> str | None:
        """Why it ended without finishing, in one line; None if it has not ended, or finished."""
        code = self._process.poll()
        if code in (None, 0):
            return None
        lines = [line for line in self._lines() if line]
        if code == USER_ERROR_EXIT:
            said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            return printable("; ".join(said)) if said else f"generation failed; see {self._log}"
        how = f"was killed by signal {-code}" if code < 0 else f"failed (exit code {code})"
        last = f"; {printable(lines[-1])}" if lines else ""
        return f"generation {how}{last} (more in {self._log}); g goes on"

    def stop(self) -> None:
        """End the process. What it has written stays, and the same request goes on from there."""
        if self.running:
            self._process.terminate()
        self._process.wait()

    def _lines(self) -> list[str]:
        text = self._log.read_text(encoding="utf-8", errors="replace")
        # Only lines that are complete: the path must not be read half written.
        return text[: text.rfind("\n") + 1].splitlines()
