"""The supervisor of a worker: `python -m localdpo.launch.supervise RUN_DIR [COMMAND...]`.

It starts the worker, prints the worker's process id, passes SIGINT and SIGTERM on, and waits. A worker that
died without a word (SIGKILL, an abort inside the GPU driver, a crash of the interpreter) gets its end
written into the log by it, so that every viewer learns how, whoever started the run and whenever the viewer
came. It needs the standard library and core alone, so it costs some 20 MB and next to no time.

Its exit code is the worker's, 128 plus the number for a signal. Killed itself, it leaves the worker alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from localdpo.core.checkpoints import newest_checkpoint
from localdpo.core.errors import USER_ERROR_EXIT, LocalDPOError
from localdpo.core.events import EventTail, EventWriter, effective, read_events
from localdpo.core.progress import progress_of
from localdpo.core.rundir import RunDir, RunLock, is_end
from localdpo.core.signals import StopRequests
from localdpo.launch.explain import FINISHED_EXIT, STOPPED_AT_ONCE, WORKER, explain_death, signal_name
from localdpo.out import guard, say


class Relay:
    """Passes requests to stop on to the worker, as SIGINT; those that come before it is there wait for it.

    As SIGINT also where SIGTERM came: the worker then knows it from the SIGTERM that a system which shuts
    down sends to every process, and takes both for one request.
    """

    def __init__(self) -> None:
        self._requests = StopRequests()
        self._worker: subprocess.Popen[bytes] | None = None

    def install(self) -> None:
        """Take over SIGINT and SIGTERM of this process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._handle)

    def pass_to(self, worker: subprocess.Popen[bytes]) -> None:
        """From now on requests go to `worker`; those that came earlier go at once."""
        self._worker = worker
        for _ in range(self._requests.count):
            worker.send_signal(signal.SIGINT)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._requests.take(number, time.monotonic()) and self._worker is not None:
            self._worker.send_signal(signal.SIGINT)


def main(arguments: Sequence[str]) -> int:
    """Run the worker of the run `arguments[0]`, or the command after it, to its end; its exit code."""
    if not arguments:
        say("usage: python -m localdpo.launch.supervise RUN_DIR [COMMAND...]", error=True)
        return USER_ERROR_EXIT
    run, command = RunDir(arguments[0]), tuple(arguments[1:]) or WORKER
    relay = Relay()
    relay.install()
    events = EventTail(run.events)
    events.skip()
    with run.worker_log.open("ab") as log:
        log_start = log.tell()
        worker = subprocess.Popen(
            [*command, str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    relay.pass_to(worker)
    _tell(worker.pid)
    code = worker.wait()
    if not any(is_end(event) for event in events.poll()):
        _write_end(run, code, log_start)
    return code if code >= 0 else 128 - code


def _tell(pid: int) -> None:
    """Give the launching process the worker's id; it may be gone already."""
    with contextlib.suppress(BrokenPipeError):
        os.write(sys.stdout.fileno(), f"{pid}\n".encode())


def _write_end(run: RunDir, code: int, log_start: int) -> None:
    """Write the end of a worker that could not: `run.stopped` after a stop at once, else `run.crashed`.

    Nothing is written for one that refused to run (its command says why), and nothing when another worker
    has the run by now.
    """
    if code in (FINISHED_EXIT, USER_ERROR_EXIT):
        return
    lines = explain_death(code, run, log_start)
    step = progress_of(effective(read_events(run.events))).step
    try:
        with RunLock(run, signed=False), EventWriter(run.events) as log:
            if code in STOPPED_AT_ONCE:
                reason = signal_name(-code if code < 0 else code - 128)
                saved = newest_checkpoint(run) == run.checkpoint_path(step)
                log.write("run.stopped", step, reason=reason, saved=saved, lines=lines)
            elif code < 0:
                log.write("run.crashed", step, signal=signal_name(-code), lines=lines)
            else:
                log.write("run.crashed", step, exit_code=code, lines=lines)
    except LocalDPOError as error:
        say(f"supervisor: {error}", error=True)


if __name__ == "__main__":
    guard()
    sys.exit(main(sys.argv[1:]))
