"""The supervisor of a worker: `python -m localdpo.launch.supervise RUN_DIR [COMMAND...]`.

It starts the worker, prints the worker's process id, passes requests to stop on, and waits. If the worker
crashes without writing its end (SIGKILL, an abort inside the GPU driver, a crash of the interpreter), the
supervisor writes it to the log, so that every viewer sees how the run ended. It starts the processes that
show the run to trackers, if the recipe names any. It needs only the standard library and the rooms below, so
it costs some 20 MB and starts at once.

Its exit code is the worker's, 128 plus the number for a signal. If it is killed, the worker goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Final

from localdpo.core.errors import USER_ERROR_EXIT, LocalDPOError
from localdpo.core.process import SignalPipe, StopRequests
from localdpo.launch.explain import FINISHED_EXIT, STOPPED_AT_ONCE, WORKER, explain_death, signal_name
from localdpo.launch.processes import AT_ONCE, open_worker_log
from localdpo.launch.reporting import Reporters
from localdpo.out import guard, say, say_errors
from localdpo.records.checkpoints import newest_checkpoint
from localdpo.records.events import EventTail, EventWriter, effective, read_events
from localdpo.records.progress import progress_of
from localdpo.records.rundir import LOCK_FD, RunDir, RunLock, is_end

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, AT_ONCE, signal.SIGCHLD)


def main(arguments: Sequence[str]) -> int:
    """Run the worker of the run `arguments[0]`, or the command after it, to its end; its exit code."""
    if not arguments:
        say("usage: python -m localdpo.launch.supervise RUN_DIR [COMMAND...]", error=True)
        return USER_ERROR_EXIT
    signals = SignalPipe(_SIGNALS)
    try:
        code = _supervise(RunDir(arguments[0]), tuple(arguments[1:]) or WORKER, signals)
    except LocalDPOError as error:
        say_errors(error)
        return USER_ERROR_EXIT
    finally:
        signals.close()
    return code if code >= 0 else 128 - code


def _supervise(run: RunDir, command: Sequence[str], signals: SignalPipe) -> int:
    """The worker's exit code; the lock is held until its end is in the log, but not while trackers finish."""
    reporters = Reporters(run)
    with RunLock(run, signed=False) as lock, open_worker_log(run) as log:
        events = EventTail(run.events)
        events.skip()
        log_start = log.tell()
        worker = subprocess.Popen(
            [*command, str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, LOCK_FD: str(lock.fd)},
            start_new_session=True,
            pass_fds=[lock.fd],
        )
        lock.sign(worker.pid)
        with contextlib.suppress(BrokenPipeError):  # the launching process may have ended already
            os.write(sys.stdout.fileno(), f"{worker.pid}\n".encode())
        code = _wait(worker, signals, reporters)
        if not any(is_end(event) for event in events.poll()):
            _write_end(run, code, log_start)
    reporters.finish(lambda seconds: bool(set(signals.read(seconds)) - {signal.SIGCHLD}))
    return code


def _wait(worker: subprocess.Popen[bytes], signals: SignalPipe, reporters: Reporters) -> int:
    """Wait for the worker's end and pass requests to stop on; minus the signal if the second one killed it.

    The first is passed on as SIGINT, also where SIGTERM came: a system that shuts down sends SIGTERM to every
    process, and the worker then takes both for one request. The second is passed on as SIGKILL, which the
    worker cannot delay.
    """
    requests, killed_by = StopRequests(), 0
    while worker.poll() is None:
        reporters.look()
        for number in signals.read(timeout=reporters.look_again):
            if number == signal.SIGCHLD:
                continue
            is_new = requests.take(number, time.monotonic())
            if number == AT_ONCE or requests.count > 1:
                killed_by = signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT
                worker.kill()
            elif is_new:
                worker.send_signal(signal.SIGINT)
    is_ours = killed_by and worker.returncode == -signal.SIGKILL
    return -killed_by if is_ours else worker.returncode


def _write_end(run: RunDir, code: int, log_start: int) -> None:
    """Write the end of a worker that could not: `run.stopped` after a stop at once, else `run.crashed`.

    Nothing is written for a worker that refused to run: its command reports why.
    """
    if code in (FINISHED_EXIT, USER_ERROR_EXIT):
        return
    lines = explain_death(code, run, log_start)
    step = progress_of(effective(read_events(run.events))).step
    try:
        with EventWriter(run.events) as log:
            if code in STOPPED_AT_ONCE:
                reason = signal_name(-code if code < 0 else code - 128)
                saved = newest_checkpoint(run) == run.checkpoint_path(step)
                log.write("run.stopped", step, reason=reason, saved=saved, lines=lines)
            elif code < 0:
                log.write("run.crashed", step, signal=signal_name(-code), lines=lines)
            else:
                log.write("run.crashed", step, exit_code=code, lines=lines)
    except LocalDPOError as error:
        with contextlib.suppress(OSError):  # the disk is full: the command reports that itself
            say(f"supervisor: {error}", error=True)


if __name__ == "__main__":
    guard()
    sys.exit(main(sys.argv[1:]))
