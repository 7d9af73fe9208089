"""Start the worker of a run, below its supervisor."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Final

from localdpo.core.errors import USER_ERROR_EXIT
from localdpo.core.events import Event, EventTail
from localdpo.core.rundir import RunDir, already_running, is_end, state_of
from localdpo.launch.explain import FINISHED_EXIT, STOPPED_EXIT, UNSEEN_EXIT, WORKER

_POLL_SECONDS: Final = 0.05


@dataclass(frozen=True)
class Worker:
    """A worker that this process had started.

    Attributes:
        process: its supervisor.
        pid: the worker's own process id, None if the supervisor could not start it.
        events: what this worker writes, for who follows it.
        life: the same from its beginning, for a look back; it is copied, never polled.
        log_start: where its part of worker.log begins, in bytes.
    """

    run: RunDir
    process: subprocess.Popen[bytes]
    pid: int | None
    events: EventTail
    life: EventTail
    log_start: int

    @property
    def returncode(self) -> int | None:
        """None while it lives; minus the signal's number if a signal ended it.

        A supervisor that was killed tells nothing: the log then says how the worker ended, or UNSEEN_EXIT.
        """
        code = self.process.poll()
        if code is None or (code < 0 and self._lives_on()):
            return None
        if code < 0:
            return code if self.pid is None else _code_in_log(copy(self.life).poll())
        return 128 - code if 128 < code < UNSEEN_EXIT else code

    def wait(self) -> int:
        """Wait for its end; `returncode` then."""
        while True:
            self.process.wait()
            code = self.returncode
            if code is not None:
                return code
            time.sleep(_POLL_SECONDS)

    def interrupt(self) -> None:
        """Ask it to save and stop; a second time, to stop at once. Nothing happens if it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        elif self.pid is not None and self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGINT)

    def _lives_on(self) -> bool:
        """Whether the worker lives without its supervisor."""
        if self.pid is None:
            return False
        if self.run.pid() == self.pid:
            return self.run.is_running()
        return _exists(self.pid)  # it has not taken the lock yet


def start_worker(
    run: RunDir,
    env: Mapping[str, str] | None = None,
    command: Sequence[str] | None = None,
    *,
    accept_changes: bool = False,
) -> Worker:
    """Start the worker of `run` in a session of its own, its output appended to worker.log.

    `env` is added to the environment. `command` replaces WORKER. `accept_changes`: go on with inputs that
    changed since the run began. Raises UserError if the run has a living worker.
    """
    if run.is_running():
        raise already_running(run)
    worker = [*(command or WORKER), *(["--accept-changes"] if accept_changes else [])]
    events = EventTail(run.events)
    events.skip()
    with run.worker_log.open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "localdpo.launch.supervise", str(run.path), *worker],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    assert process.stdout is not None
    with process.stdout as pipe:
        said = pipe.readline().strip()
    return Worker(run, process, int(said) if said else None, events, copy(events), log_start)


def _code_in_log(log: Sequence[Event]) -> int:
    """The exit code that goes with the end that the worker wrote, if it did."""
    state = state_of(log, running=False)
    if state == "failed":
        end = next(event for event in reversed(log) if is_end(event))
        return USER_ERROR_EXIT if end.data.get("lines") else 1
    return {"finished": FINISHED_EXIT, "stopped": STOPPED_EXIT}.get(state, UNSEEN_EXIT)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
