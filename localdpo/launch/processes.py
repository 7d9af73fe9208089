"""The processes that localdpo starts: the worker of a run below its supervisor, and jobs beside a screen."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from localdpo.core.atomic import LEAST_BYTES, no_space_error, out_of_space, require_space
from localdpo.core.errors import DEVICE_EXIT, USER_ERROR_EXIT, UserError
from localdpo.core.text import printable
from localdpo.launch.explain import FINISHED_EXIT, STOPPED_EXIT, UNSEEN_EXIT, WORKER, bytes_to_resume, failure
from localdpo.records.deaths import death_in, training_hint
from localdpo.records.events import Event, EventTail
from localdpo.records.rundir import LOCK_FD, RunDir, RunLock, is_end, state_of

# Tells the supervisor to stop the worker at once. Not a second SIGINT: while the first is still pending, the
# kernel delivers a single one.
AT_ONCE: Final = signal.SIGQUIT
# The exit codes of a worker that reported its own end.
_REPORTED: Final = frozenset({FINISHED_EXIT, USER_ERROR_EXIT, STOPPED_EXIT})
_WAIT_SECONDS: Final = 0.05
_POLL_SECONDS: Final = 0.1
# The supervisor of a worker that crashed writes the end within moments of it.
_LAST_EVENT_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Worker:
    """A worker that this process started.

    Attributes:
        process: its supervisor.
        pid: the worker's own process id, None if the supervisor could not start it.
        events: the events of this worker, from its first on.
        events_start: the byte of the log at which they begin.
        log_start: the byte of worker.log at which its output begins.
    """

    run: RunDir
    process: subprocess.Popen[bytes]
    pid: int | None
    events: EventTail
    events_start: int
    log_start: int

    @property
    def returncode(self) -> int | None:
        """None while it runs; minus the signal's number if a signal ended it.

        A supervisor that was killed reports nothing: the log then says how the worker ended, or UNSEEN_EXIT.
        """
        code = self.process.poll()
        if code is None:
            return None
        if code < 0:
            if self.pid is None:
                return code
            is_orphaned = self.run.pid() == self.pid and self.run.is_running()
            return None if is_orphaned else code_in_log(self.written_events())
        code = 128 - code if 128 < code < UNSEEN_EXIT else code
        # A crash while the interpreter shut down after all was done.
        is_done = code not in _REPORTED and code_in_log(self.written_events()) == FINISHED_EXIT
        return FINISHED_EXIT if is_done else code

    def written_events(self) -> list[Event]:
        """The events that it has written so far."""
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
            time.sleep(_WAIT_SECONDS)

    def interrupt(self, *, at_once: bool = False) -> None:
        """Ask it to save and stop, or to stop at once. Nothing happens if it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(AT_ONCE if at_once else signal.SIGINT)
        elif self.pid is not None and self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL if at_once else signal.SIGINT)


def start_worker(
    run: RunDir,
    env: Mapping[str, str] | None = None,
    command: Sequence[str] | None = None,
    *,
    accept_changes: bool = False,
) -> Worker:
    """Start the worker of `run` in a session of its own, its output appended to worker.log.

    `env` is added to the environment. `command` replaces WORKER. `accept_changes`: resume with inputs
    that changed since the run began. Raises UserError if the run has a running worker, and for a full disk.
    """
    worker = [*(command or WORKER), *(["--accept-changes"] if accept_changes else [])]
    require_space(run.path, bytes_to_resume(run))
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
        pid = pipe.readline().strip()
    return Worker(run, process, int(pid) if pid else None, events, events_start, log_start)


def watch(target: Worker | RunDir, on_poll: Callable[[], None] | None = None) -> Iterator[Event]:
    """The events of a run as they come; ends when its worker has ended and its last event was yielded.

    Of a Worker: what this worker writes. Of a RunDir: the whole log from the beginning. `on_poll` is called
    about ten times a second.
    """
    tail = target.events if isinstance(target, Worker) else EventTail(target.events)
    ended, over, deadline = False, False, 0.0
    while True:
        # Checked before the log is read, so that nothing written before the end is missed.
        if isinstance(target, Worker):
            ended = target.returncode is not None
        else:
            running = target.is_running()
            if running:
                deadline = time.monotonic() + _LAST_EVENT_SECONDS
            ended = not running and (over or time.monotonic() > deadline)
        for event in tail.poll():
            over = is_end(event) or (over and not event.type.startswith("run."))
            yield event
        if on_poll is not None:
            on_poll()
        if ended:
            return
        time.sleep(_POLL_SECONDS)


def open_worker_log(run: RunDir) -> BinaryIO:
    """worker.log, to append to. Raises UserError when it cannot be opened."""
    try:
        return run.worker_log.open("ab")
    except OSError as error:
        if out_of_space(error):
            raise no_space_error(run.worker_log, LEAST_BYTES) from error
        raise UserError(f"{run.worker_log}: cannot be written: {error.strerror}") from error


def code_in_log(log: Sequence[Event]) -> int:
    """The exit code for the end that the worker wrote to the log; UNSEEN_EXIT where it wrote none."""
    state = state_of(log, running=False)
    if state == "failed":
        end = next(event for event in reversed(log) if is_end(event))
        if end.data.get("lines"):
            return USER_ERROR_EXIT
        return 1 if training_hint(str(end.data.get("error"))) is None else DEVICE_EXIT
    return {"finished": FINISHED_EXIT, "stopped": STOPPED_EXIT}.get(state, UNSEEN_EXIT)


class Job:
    """A process without input whose output, stdout and stderr alike, goes to the file `log`, emptied first.

    It runs in a session of its own: Ctrl-C at the screen does not reach it. Raises OSError if it cannot be
    started. `what` names its work and `again` how to repeat it, both for `problem`. `done` is how the line
    begins that it prints when it has finished; without one its exit code alone says so.
    """

    def __init__(
        self, command: Sequence[str], log: Path, what: str, again: str, done: str | None = None
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log, self._what, self._again, self._done = log, what, again, done
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
        """Whether the process has not ended."""
        return self._process.poll() is None

    def wait(self) -> None:
        """Wait for its end."""
        self._process.wait()

    def lines(self) -> list[str]:
        """The complete lines that it has printed so far."""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        return [line for line in text[: text.rfind("\n") + 1].splitlines() if line]

    def report(self) -> str:
        """The last line that begins with `done`; empty if there is none."""
        said = [line for line in self.lines() if self._done is not None and line.startswith(self._done)]
        return said[-1] if said else ""

    def problem(self, *, quote: bool = True) -> str | None:
        """Why it ended without finishing, in one line; None if it has not ended, or finished.

        `quote`: with the last line that it printed.
        """
        code = self._process.poll()
        if code is None or (code == 0 and (self._done is None or self.report())):
            return None
        lines = self.lines()
        if code in (USER_ERROR_EXIT, DEVICE_EXIT):
            errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
            return printable("; ".join(errors)) if errors else f"{self._what} failed; see {self._log}"
        last = f"; {printable(lines[-1].strip())}" if lines and quote else ""
        death = death_in("\n".join(lines))
        hint = f"; {death.cause}: {death.elsewhere}" if death is not None else ""
        how = failure(code) if code else "ended before it was done"
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
