"""Processes of localdpo that work beside a screen: answers for a comparison, an evaluation."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from localdpo.core.errors import DEVICE_EXIT, USER_ERROR_EXIT
from localdpo.core.text import printable
from localdpo.records.deaths import death_in


class Job:
    """A process without input whose output, stdout and stderr alike, goes to the file `log`, emptied first.

    It is in a session of its own: Ctrl-C at the screen is not meant for it. Raises OSError if it cannot be
    started. `what` names its work, `again` how it is taken up, both for `problem`.
    """

    def __init__(self, command: Sequence[str], log: Path, what: str, again: str) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._what, self._again = log, what, again
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    def lines(self) -> list[str]:
        """What it has printed so far; a line counts when it has been ended."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return [line for line in text[: text.rfind("\n") + 1].splitlines() if line]

    def problem(self) -> str | None:
        """Why it ended without finishing, in one line; None if it has not ended, or finished."""
        code = self._process.poll()
        if code in (None, 0):
            return None
        lines = self.lines()
        if code in (USER_ERROR_EXIT, DEVICE_EXIT):
            said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            return printable("; ".join(said)) if said else f"{self._what} failed; see {self._log}"
        how = f"was killed by signal {-code}" if code < 0 else f"failed (exit code {code})"
        last = f"; {printable(lines[-1])}" if lines else ""
        death = death_in("\n".join(lines))
        hint = f"; {death.cause}: {death.elsewhere}" if death is not None else ""
        return f"{self._what} {how}{last} (more in {self._log}){hint}; {self._again}"

    def stop(self, patience: float = 10.0) -> None:
        """End the process: SIGTERM, and SIGKILL after `patience` seconds. Nothing happens if it has ended."""
        if self.is_running:
            self._process.terminate()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
