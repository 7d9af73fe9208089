"""Trackers beside a run: one process for each, which reads the run's log. None of them touches training.

    python -m localdpo.launch.reporting RUN_DIR TRACKER

shows the run to the tracker until the run has ended; of a run that has ended, what the tracker does not have
yet. One call of the tracker may take LOCALDPO_TRACKER_SECONDS (60), and so may all that is left when the run
ends; then the process is ended.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from traceback import format_exception
from typing import Final

from localdpo.core.errors import USER_ERROR_EXIT, LocalDPOError, UserError
from localdpo.core.names import command_line
from localdpo.core.text import counted
from localdpo.launch.processes import Job, watch
from localdpo.out import guard, say, say_errors
from localdpo.records.events import REDONE_TYPES, Event, EventTail, EventWriter, effective
from localdpo.records.log import LogWriter
from localdpo.records.rundir import RunDir
from localdpo.records.wording import run_words

PATIENCE_SWITCH: Final = "LOCALDPO_TRACKER_SECONDS"
NOTICE: Final = "tracker"
# How the line begins that a process prints when it is done; trackers print lines of their own around it.
REPORTED: Final = "reported to "
_PATIENCE_SECONDS: Final = 60.0
_LOOK_SECONDS: Final = 1.0
_FINISH_SECONDS: Final = 0.2
_SILENT_SECONDS: Final = 3.0
# How faulthandler begins when a call took too long.
_TIMEOUT: Final = "Timeout ("
_SECRET: Final = re.compile(r"KEY|TOKEN|PASSWORD|SECRET")
_SHORTEST_SECRET: Final = 8


def patience() -> float:
    """How long a tracker may take, in seconds."""
    try:
        seconds = float(os.environ.get(PATIENCE_SWITCH, ""))
    except ValueError:
        return _PATIENCE_SECONDS
    # What no clock can count would end the process of the tracker before it begins.
    return seconds if 0 < seconds <= threading.TIMEOUT_MAX else _PATIENCE_SECONDS


def start_reporter(run: RunDir, name: str, again: str) -> Job:
    """Start the process that shows `run` to the tracker `name`; `again` ends the line about its failure."""
    command = [sys.executable, "-m", "localdpo.launch.reporting", str(run.path), name]
    return Job(command, run.trackers / f"{name}.log", name, again, REPORTED)


def problem_of(job: Job) -> str | None:
    """Why a reporter ended without finishing, in one line; None if it has not ended, or finished."""
    if any(line.startswith(_TIMEOUT) for line in job.lines()):
        # What it printed last is where it hung.
        problem = job.problem(quote=False)
        return problem and f"no answer within {patience():g} s ({PATIENCE_SWITCH}); {problem}"
    return job.problem()


class Reporters:
    """The reporters beside a worker, for its supervisor: started, watched and ended.

    They begin with the worker's first step or evaluation. By then the log says where a resumed run goes on,
    so that none of them shows what the resume made void.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._events = EventTail(run.events)
        self._events.skip()
        self._wanted: list[str] = []
        self._settled = False
        self._jobs: dict[str, Job] = {}

    @property
    def look_again(self) -> float | None:
        """Seconds until `look` may have something to start; None if it waits for ends of processes alone."""
        return None if self._settled else _LOOK_SECONDS

    def look(self) -> None:
        """Start the reporters when it is time, and write a notice about each that has failed since."""
        for event in [] if self._settled else self._events.poll():
            if event.type == "run.started":
                self._wanted = trackers_of([event])
                self._settled = not self._wanted
            elif event.type in REDONE_TYPES and not self._settled:
                self._settled = True
                self._start()
        for name, job in list(self._jobs.items()):
            if not job.is_running:
                del self._jobs[name]
                if (problem := problem_of(job)) is not None:
                    self._write_notice(name, problem)

    def finish(self, is_stopped: Callable[[float], bool]) -> None:
        """Give them time to write what is left, and end those that are not done.

        `is_stopped` waits at most so many seconds, and says whether a person asks to stop at once.
        """
        self.look()
        began, told = time.monotonic(), False
        while self._jobs and (waited := time.monotonic() - began) < patience():
            if not told and waited > _SILENT_SECONDS:
                told = True
                self._write(
                    level="info", message=f"waiting for {', '.join(self._jobs)}, {patience():g} s at most"
                )
            if is_stopped(_FINISH_SECONDS):
                break
            self.look()
        self.look()
        for name, job in self._jobs.items():
            job.stop(patience=1.0)
            self._write_notice(name, f"{name} was ended before it was done")

    def _start(self) -> None:
        for name in self._wanted:
            try:
                self._jobs[name] = start_reporter(self._run, name, "the run is not affected")
            except OSError as error:
                self._write_notice(name, f"{name} cannot be started: {error.strerror}")

    def _write_notice(self, name: str, problem: str) -> None:
        again = command_line("runs", "sync", *run_words(self._run), "--to", name)
        self._write(level="warning", message=masked(problem), **{"try": f"when the run has ended: {again}"})

    def _write(self, **fields: str) -> None:
        try:
            with EventWriter(self._run.events) as log:
                log.write("notice", None, name=NOTICE, **fields)
        except LocalDPOError as error:
            with contextlib.suppress(OSError):  # the disk is full
                say(f"supervisor: {error}", error=True)


def trackers_of(events: Iterable[Event]) -> list[str]:
    """What report_to in the recipe of the latest run.started event names."""
    names: object = None
    for event in events:
        if event.type == "run.started" and isinstance(recipe := event.data.get("recipe"), dict):
            names = recipe.get("report_to")
    return [str(name) for name in names] if isinstance(names, list) else []


# --- the process of one tracker --------------------------------------------------------------------------


def main(arguments: Sequence[str]) -> int:
    """Show the run `arguments[0]` to the tracker `arguments[1]`; the exit code."""
    sys.excepthook = lambda *error: say(masked("".join(format_exception(*error))), error=True, end="")
    from localdpo.trackers.registry import TRACKERS

    if len(arguments) != 2 or arguments[1] not in TRACKERS:
        say("usage: python -m localdpo.launch.reporting RUN_DIR TRACKER", error=True)
        return USER_ERROR_EXIT
    run, name = RunDir(Path(arguments[0])), arguments[1]
    try:
        run.trackers.mkdir(exist_ok=True)
        # Two reporters of one tracker would both send what it does not have.
        with LogWriter(run.trackers / f"{name}.lock", exclusive=True):
            say(f"{REPORTED}{name}: {_report(run, name)}")
    except LocalDPOError as error:
        say_errors(error)
        return USER_ERROR_EXIT
    return 0


def _report(run: RunDir, name: str) -> str:
    """Show a run to a tracker to its end; what was sent, in words."""
    from localdpo.trackers.registry import TRACKERS, require_packages
    from localdpo.trackers.reporter import Reporter

    require_packages([name])
    is_live = run.is_running()
    reporter, new = Reporter(run, TRACKERS[name]), list[Event]()

    def send(*, over: bool = False) -> None:
        if not new and not over:
            return
        was_open = reporter.tracker is not None
        reporter.add(effective(new))
        new.clear()
        more = True
        while more:
            with _limit():
                more = reporter.send(over=over)
        if is_live and not was_open and reporter.tracker is not None:
            with EventWriter(run.events) as log:
                message = f"{name} is shown this run: {reporter.tracker.place}"
                log.write("notice", level="info", name=NOTICE, message=message)

    for event in watch(run, on_poll=send):
        new.append(event)
    send(over=True)
    if reporter.tracker is None:
        raise UserError(f"{run.path}: this run has not begun; there is nothing to show")
    state = run.status()
    with _limit():
        reporter.finish("crashed" if state == "new" or state == "running" else state)
    return f"{counted(reporter.sent, 'step')} sent; {reporter.tracker.place}"


@contextlib.contextmanager
def _limit() -> Iterator[None]:
    """End this process if the block takes too long, wherever it hangs: in Python, in C, in the network."""
    faulthandler.dump_traceback_later(patience(), exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def masked(text: str) -> str:
    """`text` without the values of environment variables that are keys, tokens, passwords or secrets."""
    values = [value for name, value in os.environ.items() if _SECRET.search(name.upper())]
    for value in values:
        if len(value) >= _SHORTEST_SECRET:
            text = text.replace(value, "***")
    return text


if __name__ == "__main__":
    guard()
    sys.exit(main(sys.argv[1:]))
