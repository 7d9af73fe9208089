"""Start the worker of a run, follow its event log, and say in plain words how it ended.

The worker is a process in its own session: it outlives the terminal that started it, and a failure of the
GPU driver, which aborts the process and cannot be caught in Python, takes nothing else down.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from localdpo.core.errors import USER_ERROR_EXIT
from localdpo.core.events import Event, EventTail, effective, read_events
from localdpo.core.progress import Progress, progress_of
from localdpo.core.rundir import RunDir, already_running

FINISHED_EXIT: Final = 0
STOPPED_EXIT: Final = 3
# Ended by a second Ctrl-C, by one that came before the worker could listen, or by SIGTERM in the same way.
STOPPED_AT_ONCE: Final = frozenset(
    code for number in (signal.SIGINT, signal.SIGTERM) for code in (-number, 128 + number)
)
DEFAULT_RUNS_DIR: Final = Path("runs")
_POLL_SECONDS: Final = 0.1
_LOG_TAIL_BYTES: Final = 64 * 1024
_LOG_TAIL_LINES: Final = 10
_LESS_MEMORY: Final = (
    "lower train.micro_batch_size or train.max_length, or set train.gradient_checkpointing=true (a new run)"
)
# What worker.log shows of an end that Python could not catch, the most telling first.
_HINTS: Final = (
    (
        re.compile(r"kIOGPUCommandBuffer\w*OutOfMemory|Insufficient Memory"),
        f"the GPU ran out of memory: {_LESS_MEMORY}",
    ),
    (
        re.compile(r"kIOGPUCommandBuffer\w*(Timeout|Hang|ImpactingInteractivity)"),
        "macOS stopped a GPU command that ran for too long: lower train.micro_batch_size or train.max_length "
        "(a new run), or keep the display asleep while it trains",
    ),
    (re.compile(r"kIOGPUCommandBuffer"), "the GPU gave up on a command; resuming usually works"),
    (
        re.compile(r"MemoryError|std::bad_alloc|\[malloc|[Uu]nable to allocate|Cannot allocate memory"),
        f"memory ran out: {_LESS_MEMORY}",
    ),
)
_KILL_HINT: Final = f"if nobody killed it, the system was out of memory: {_LESS_MEMORY}"


@dataclass(frozen=True)
class Worker:
    """A worker that this process started. `log_start` is where its part of worker.log begins, in bytes."""

    run: RunDir
    process: subprocess.Popen[bytes]
    events: EventTail
    log_start: int

    @property
    def returncode(self) -> int | None:
        """None while it lives; minus the signal's number if a signal ended it."""
        return self.process.poll()

    def interrupt(self) -> None:
        """Ask it to save and stop; a second time, to stop at once. Nothing happens if it has ended."""
        self.process.send_signal(signal.SIGINT)


def start_worker(
    run: RunDir, env: Mapping[str, str] | None = None, command: Sequence[str] | None = None
) -> Worker:
    """Start the worker of `run` in a session of its own, its output appended to worker.log.

    `env` is added to the environment. `command` replaces `python -m localdpo.train` (the run folder is
    added to it). Raises UserError if the run has a living worker.
    """
    if run.is_running():
        raise already_running(run)
    events = EventTail(run.events)
    events.skip()
    with run.worker_log.open("ab") as log:
        log_start = log.tell()
        process = subprocess.Popen(
            [*(command or (sys.executable, "-m", "localdpo.train")), str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            start_new_session=True,
        )
    return Worker(run, process, events, log_start)


def watch(target: Worker | RunDir, on_poll: Callable[[], None] | None = None) -> Iterator[Event]:
    """The events of a run as they come; ends when its worker has ended and its last event was given.

    Of a Worker: what this worker writes. Of a RunDir: the whole log from the beginning. `on_poll` is called
    about ten times a second.
    """
    tail = target.events if isinstance(target, Worker) else EventTail(target.events)
    while True:
        # Looked at before the log is read, so that nothing written before the end is missed.
        ended = target.returncode is not None if isinstance(target, Worker) else not target.is_running()
        yield from tail.poll()
        if on_poll is not None:
            on_poll()
        if ended:
            return
        time.sleep(_POLL_SECONDS)


def explain_death(returncode: int, run: RunDir, log_start: int = 0) -> list[str]:
    """Plain lines about a worker that ended with `returncode`; empty for one that finished.

    `log_start` is the byte of worker.log where the output of this worker begins.
    """
    if returncode == FINISHED_EXIT:
        return []
    log = _log_text(run, log_start)
    events = read_events(run.events)
    if returncode == USER_ERROR_EXIT:
        return _user_errors(events, log)
    progress = progress_of(effective(events))
    resume = f"go on with: {resume_command(run)}"
    if returncode == STOPPED_EXIT:
        return [f"stopped {_where(run, progress)}", resume]
    if returncode in STOPPED_AT_ONCE:
        return [f"stopped at once {_where(run, progress)}", resume]
    if not any(event.type == "run.started" for event in events):
        return [f"the worker {_how(returncode)} before the run began; its last words:", *_last_lines(log)]
    death = f"the worker {_how(returncode)} {_where(run, progress)}{_last_words(returncode, run, log)}"
    hint = _hint(returncode, log)
    return [death, resume, *([f"hint: {hint}"] if hint else [])]


def resume_command(run: RunDir) -> str:
    """The command that goes on with `run`, ready for a shell in the current directory."""
    words = ["localdpo", "train", "--resume", "--run", run.name]
    if run.path.parent != DEFAULT_RUNS_DIR:
        words += ["--runs-dir", str(run.path.parent)]
    return shlex.join(words)


def _user_errors(events: list[Event], log: str) -> list[str]:
    """The `error: ...` lines of a worker that could not do what was asked, without the `error: `."""
    said = [line.removeprefix("error: ") for line in log.splitlines() if line.startswith("error: ")]
    if said:
        return said
    failed = next((event for event in reversed(events) if event.type == "run.failed"), None)
    if failed is not None and isinstance(failed.data.get("error"), str):
        return [str(failed.data["error"])]
    return ["the worker refused to run; its last words:", *_last_lines(log)]


def _how(returncode: int) -> str:
    if returncode >= 0:
        return f"failed (exit code {returncode})"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"was killed by {name}"


def _where(run: RunDir, progress: Progress) -> str:
    of = f" of {progress.total}" if progress.total is not None else ""
    checkpoint = run.latest_checkpoint()
    kept = f"the last checkpoint is {checkpoint}" if checkpoint is not None else "there is no checkpoint yet"
    return f"after step {progress.step}{of}; {kept}"


def _last_words(returncode: int, run: RunDir, log: str) -> str:
    """For an uncaught exception: its last line, and where the rest is."""
    lines = _last_lines(log)
    return f"; {lines[-1]} (more in {run.worker_log})" if returncode > 0 and lines else ""


def _hint(returncode: int, log: str) -> str | None:
    for pattern, hint in _HINTS:
        if pattern.search(log):
            return hint
    return _KILL_HINT if returncode == -signal.SIGKILL else None


def _log_text(run: RunDir, start: int) -> str:
    """The end of worker.log, nothing of it from before byte `start`; empty when there is none."""
    try:
        with run.worker_log.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(start, log.tell() - _LOG_TAIL_BYTES))
            return log.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _last_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.strip()][-_LOG_TAIL_LINES:]
