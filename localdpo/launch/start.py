"""Start the worker of a run, below its supervisor."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

from localdpo.core.atomic import LEAST_BYTES, no_space_error, out_of_space, require_space
from localdpo.core.errors import DEVICE_EXIT, USER_ERROR_EXIT, UserError
from localdpo.launch.explain import FINISHED_EXIT, STOPPED_EXIT, UNSEEN_EXIT, WORKER, bytes_to_go_on
from localdpo.records.deaths import training_hint
from localdpo.records.events import Event, EventTail
from localdpo.records.rundir import LOCK_FD, RunDir, RunLock, is_end, state_of

# Tells the supervisor to stop the worker at once. A second SIGINT may come while the first still waits for
# the supervisor, and the kernel makes one of them then.
AT_ONCE: Final = signal.SIGQUIT
_POLL_SECONDS: Final = 0.05
_TOLD: Final = frozenset({FINISHED_EXIT, USER_ERROR_EXIT, STOPPED_EXIT})


@dataclass(frozen=True)
class Worker:
    """A worker that this process had started.

    Attributes:
        process: its supervisor.
        pid: the worker's own process id, None if the supervisor could not start it.
        events: what this worker writes, for who follows it.
        events_start: where that begins in the log, in bytes.
        log_start: where its part of worker.log begins, in bytes.
    """

    run: RunDir
    process: subprocess.Popen[bytes]
    pid: int | None
    events: EventTail
    events_start: int
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
            return code if self.pid is None else _code_in_log(self.life())
        code = 128 - code if 128 < code < UNSEEN_EXIT else code
        # A crash while the interpreter was taken down after all was done.
        is_done = code not in _TOLD and _code_in_log(self.life()) == FINISHED_EXIT
        return FINISHED_EXIT if is_done else code

    def life(self) -> list[Event]:
        """What it has written so far."""
        tail = EventTail(self.run.events)
        tail.skip(self.events_start)
        return tail.poll()

    def wait(self) -> int:
        """Wait for its end; `returncode` then."""
        while True:
            self.process.wait()
            code = self.returncode
            if code is not None:
                return code
            time.sleep(_POLL_SECONDS)

    def interrupt(self, *, at_once: bool = False) -> None:
        """Ask it to save and stop, or to stop at once. Nothing happens if it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(AT_ONCE if at_once else signal.SIGINT)
        elif self.pid is not None and self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL if at_once else signal.SIGINT)

    def _lives_on(self) -> bool:
        """Whether the worker lives without its supervisor."""
        return self.pid is not None and self.run.pid() == self.pid and self.run.is_running()


def start_worker(
    run: RunDir,
    env: Mapping[str, str] | None = None,
    command: Sequence[str] | None = None,
    *,
    accept_changes: bool = False,
) -> Worker:
    """Start the worker of `run` in a session of its own, its output appended to worker.log.

    `env` is added to the environment. `command` replaces WORKER. `accept_changes`: go on with inputs that
    changed since the run began. Raises UserError if the run has a living worker, and when the disk is full.
    """
    worker = [*(command or WORKER), *(["--accept-changes"] if accept_changes else [])]
    require_space(run.path, bytes_to_go_on(run))
    with RunLock(run) as lock, open_worker_log(run) as log:
        events = EventTail(run.events)
        events.skip()
        events_start, log_start = events.offset, log.tell()
        process = subprocess.Popen(
            [sys.executable, "-m", "localdpo.launch.supervise", str(run.path), *worker],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **(env or {}), LOCK_FD: str(lock.fd)},
            start_new_session=True,
            pass_fds=[lock.fd],
        )
    assert process.stdout is not None
    with process.stdout as pipe:
        said = pipe.readline().strip()
    return Worker(run, process, int(said) if said else None, events, events_start, log_start)


def open_worker_log(run: RunDir) -> BinaryIO:
    """worker.log, to append to. Raises UserError when it cannot be opened."""
    try:
        return run.worker_log.open("ab")
    except OSError as error:
        if out_of_space(error):
            raise no_space_error(run.worker_log, LEAST_BYTES) from error
        raise UserError(f"{run.worker_log}: cannot be written: {error.strerror}") from error


def _code_in_log(log: Sequence[Event]) -> int:
    """The exit code that goes with the end that the worker wrote, if it did."""
    state = state_of(log, running=False)
    if state == "failed":
        end = next(event for event in reversed(log) if is_end(event))
        if end.data.get("lines"):
            return USER_ERROR_EXIT
        return 1 if training_hint(str(end.data.get("error"))) is None else DEVICE_EXIT
    return {"finished": FINISHED_EXIT, "stopped": STOPPED_EXIT}.get(state, UNSEEN_EXIT)
