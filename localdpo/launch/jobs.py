"""Other commands of localdpo, run as processes beside a screen: a comparison, an evaluation, a judge."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Job:
    """A command that this process started. `log` holds what it prints, stdout and stderr alike."""

    process: subprocess.Popen[bytes]
    log: Path
    _offset: int = field(default=0, repr=False)
    _terminated: bool = field(default=False, repr=False)

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the signal's number if a signal ended it."""
        return self.process.poll()

    def lines(self) -> list[str]:
        """The whole lines since the last call; once it has exited, a last one without its newline too."""
        exited = self.process.poll() is not None
        with self.log.open("rb") as file:
            file.seek(self._offset)
            block = file.read()
        if not exited:
            block = block[: block.rfind(b"\n") + 1]
        self._offset += len(block)
        return block.decode("utf-8", errors="replace").splitlines()

    def terminate(self) -> None:
        """End it: SIGTERM; a second call sends SIGKILL. Nothing happens if it has ended."""
        if self._terminated:
            self.process.kill()
        else:
            self._terminated = True
            self.process.terminate()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; the exit code. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        return self.process.wait(timeout)


def start_job(arguments: Sequence[str], log: Path) -> Job:
    """Start `localdpo ARGUMENTS...` with its output in the file `log`, which is emptied first.

    It has no input, prints line by line, and goes with this process when their terminal closes.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "localdpo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    return Job(process, log)
