"""How a worker ended, in plain lines: from its exit code, or later from the run's log alone."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Mapping
from typing import Any, Final

from localdpo.core.atomic import LEAST_BYTES, is_full, no_space_error
from localdpo.core.errors import DEVICE_EXIT, USER_ERROR_EXIT
from localdpo.records.checkpoints import newest_intact
from localdpo.records.deaths import LESS_MEMORY, RESUME_WITH, end_lines, training_hint
from localdpo.records.events import Event, effective, read_events
from localdpo.records.progress import Progress, progress_of
from localdpo.records.rundir import RunDir, state_of
from localdpo.records.wording import closing_lines, resume_command

# The worker of a run; the run folder follows.
WORKER: Final = (sys.executable, "-m", "localdpo.train")
FINISHED_EXIT: Final = 0
CRASHED_EXIT: Final = 1
STOPPED_EXIT: Final = 3
INTERRUPTED_EXIT: Final = 130
# In place of the unknown exit code of a worker that ended after its supervisor was killed.
UNSEEN_EXIT: Final = 255
# Ended by a second Ctrl-C, by one that came before the worker could listen, or by SIGTERM in the same way.
STOPPED_AT_ONCE: Final = frozenset(
    code for number in (signal.SIGINT, signal.SIGTERM) for code in (-number, 128 + number)
)
_LOG_TAIL_BYTES: Final = 64 * 1024
_LOG_TAIL_LINES: Final = 10
_KILL_HINT: Final = f"if nobody killed it, the system was out of memory: {LESS_MEMORY}"


def explain_death(returncode: int, run: RunDir, log_start: int = 0) -> list[str]:
    """Plain lines about a worker that ended with `returncode`; empty for one that finished.

    `log_start` is the byte of worker.log where the output of this worker begins.
    """
    if returncode == FINISHED_EXIT:
        return []
    log = _log_text(run, log_start)
    events = read_events(run.events)
    if returncode == USER_ERROR_EXIT:
        return _user_errors(run, events, log)
    progress = progress_of(effective(events))
    if returncode == STOPPED_EXIT:
        return [f"stopped {_where(run, progress)}", _resume(run)]
    if returncode in STOPPED_AT_ONCE:
        return [f"stopped at once {_where(run, progress)}", _resume(run)]
    if full := full_disk(run):
        return [full]
    if not any(event.type == "run.started" for event in events):
        lines = [f"the worker {_how(returncode)} before the run began; its last output:", *_last_lines(log)]
        return lines + _hints(training_hint(log))
    end = f"the worker {_how(returncode)} {_where(run, progress)}{_last_output(returncode, run, log)}"
    killed = _KILL_HINT if returncode == -signal.SIGKILL else None
    return [end, _resume(run), *_hints(training_hint(log) or killed)]


def is_device_failure(returncode: int, run: RunDir, log_start: int = 0) -> bool:
    """Whether the device or a lack of memory crashed a worker, by its output."""
    other = {FINISHED_EXIT, USER_ERROR_EXIT, STOPPED_EXIT} | STOPPED_AT_ONCE
    if returncode == DEVICE_EXIT or returncode in other:
        return returncode == DEVICE_EXIT
    return training_hint(_log_text(run, log_start)) is not None


def exit_code(returncode: int, run: RunDir, log_start: int = 0, *, by_keyboard: bool = False) -> int:
    """The exit code of a command whose worker ended with `returncode`; `by_keyboard`: after Ctrl-C."""
    if returncode == FINISHED_EXIT:
        return returncode
    if returncode == STOPPED_EXIT or returncode in STOPPED_AT_ONCE:
        return INTERRUPTED_EXIT if by_keyboard else STOPPED_EXIT
    if returncode == USER_ERROR_EXIT or full_disk(run) is not None:
        return USER_ERROR_EXIT
    return DEVICE_EXIT if is_device_failure(returncode, run, log_start) else CRASHED_EXIT


def ended_lines(run: RunDir, events: Iterable[Event]) -> list[str]:
    """Plain lines about the end of a run that has no worker now, for viewers that did not see it end.

    `events`: its complete log; an end before a resume does not count. Of a worker that was killed together
    with its supervisor the exit status is unknown.
    """
    log = list(events)
    progress = progress_of(effective(log))
    state = state_of(log, running=False)
    if state == "finished":
        return closing_lines(run, log)
    if state == "new":
        return ["the run has not begun", _resume(run)]
    end = next((event for event in reversed(log) if event.type.startswith("run.")), None)
    data: Mapping[str, Any] = end.data if end is not None else {}
    written = data.get("lines")
    lines = [str(line) for line in written] if isinstance(written, list) else []
    if state == "stopped":
        return [lines[0] if lines else f"stopped {_where(run, progress)}", _resume(run)]
    if state == "failed":
        failure = f"the worker failed {_where(run, progress)}; {data.get('error')} (more in {run.worker_log})"
        return lines or [failure, _resume(run), *end_lines(end)[1:]]
    if not lines:
        return [f"the worker {_how(UNSEEN_EXIT)} {_where(run, progress)}", _resume(run)]
    # The command must be for the current folder.
    return [_resume(run) if line.startswith(RESUME_WITH) else line for line in lines]


def signal_name(number: int) -> str:
    """`SIGKILL`; `signal 100` for one without a name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def failure(returncode: int) -> str:
    """How a process ended that did not finish: `failed (exit code 1)` or `was killed by SIGKILL`."""
    return (
        f"failed (exit code {returncode})" if returncode >= 0 else f"was killed by {signal_name(-returncode)}"
    )


def _resume(run: RunDir) -> str:
    return f"{RESUME_WITH}{resume_command(run)}"


def full_disk(run: RunDir) -> str | None:
    """The line about a full disk, which the worker itself may have had no room for; None if there is room."""
    return no_space_error(run.path, bytes_to_resume(run)).message if is_full(run.path) else None


def bytes_to_resume(run: RunDir) -> int:
    """The least that a run writes next, in bytes: its log, and a checkpoint like the newest."""
    folders = sorted(run.checkpoints.glob("step-*"))
    files = folders[-1].iterdir() if folders and folders[-1].is_dir() else ()
    return LEAST_BYTES + sum(path.stat().st_size for path in files)


def _user_errors(run: RunDir, events: list[Event], log: str) -> list[str]:
    """The `error: ...` lines of a worker that refused its input, without the `error: `."""
    errors = [line.removeprefix("error: ") for line in log.splitlines() if line.startswith("error: ")]
    if errors:
        return errors
    failed = next((event for event in reversed(events) if event.type == "run.failed"), None)
    if failed is not None and isinstance(failed.data.get("error"), str):
        return [str(failed.data["error"])]
    if full := full_disk(run):
        return [full]
    return ["the worker refused to run; its last output:", *_last_lines(log)]


def _how(returncode: int) -> str:
    return "exited (exit status unknown)" if returncode == UNSEEN_EXIT else failure(returncode)


def _where(run: RunDir, progress: Progress) -> str:
    of = f" of {progress.total}" if progress.total is not None else ""
    newest, problems = newest_intact(run.checkpoints)
    if newest is not None:
        checkpoint = f"the last checkpoint is {newest.path}"
    else:
        checkpoint = "there is no valid checkpoint" if problems else "there is no checkpoint yet"
    if problems:
        checkpoint += f" (damaged: {'; '.join(problems)})"
    return f"after step {progress.step}{of}; {checkpoint}"


def _last_output(returncode: int, run: RunDir, log: str) -> str:
    """For an uncaught exception: its last line, and where the rest is."""
    lines = _last_lines(log)
    if not lines or returncode < 0 or returncode == UNSEEN_EXIT:
        return ""
    return f"; {lines[-1]} (more in {run.worker_log})"


def _hints(hint: str | None) -> list[str]:
    return [] if hint is None else [f"hint: {hint}"]


def _log_text(run: RunDir, start: int) -> str:
    """The end of worker.log, from byte `start` on; empty without the file."""
    try:
        with run.worker_log.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(start, log.tell() - _LOG_TAIL_BYTES))
            return log.read().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return ""


def _last_lines(log: str) -> list[str]:
    return [line for line in log.splitlines() if line.strip()][-_LOG_TAIL_LINES:]
