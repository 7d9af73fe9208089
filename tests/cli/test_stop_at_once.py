"""The second request to stop ends the worker whatever it is in the middle of."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import cast

import pytest

from localdpo.cli.plain import Interrupts
from localdpo.launch.processes import Worker, start_worker
from localdpo.records.events import read_events
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow

# Two calls into C that never end: one keeps the interpreter's lock, one gives it away.
HOLDING = "import itertools; any(itertools.repeat(0))"
RELEASING = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 2_000_000_000)"
WORKER = """
import sys
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir, RunLock
from localdpo.train.control import StopRequest
run = RunDir(sys.argv[1])
StopRequest().install()
with RunLock(run), EventWriter(run.events) as log:
    log.write("run.started", total_steps=6)
    {call}
"""


def computing(folder: Path, call: str) -> Worker:
    run = RunDir.create(folder, "dpo", "model: org/tiny\n")
    worker = start_worker(run, command=[sys.executable, "-c", WORKER.format(call=call)])
    while not read_events(run.events):
        time.sleep(0.01)
    time.sleep(0.2)
    return worker


def is_pending(pid: int, number: signal.Signals) -> bool:
    """Whether a process has yet to be given the signal; not known, and False, where there is no /proc."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
    masks = [
        int(line.split()[1], 16) for line in status.splitlines() if line.startswith(("SigPnd", "ShdPnd"))
    ]
    return any(mask >> (number - 1) & 1 for mask in masks)


@pytest.mark.parametrize("call", [HOLDING, RELEASING], ids=["holding", "releasing"])
@pytest.mark.parametrize("way", ["command", "supervisor", "worker"])
@pytest.mark.every(3)
def test_a_second_signal_ends_a_worker_that_computes(way: str, call: str, tmp_path: Path):
    worker = computing(tmp_path, call)
    assert worker.pid is not None
    began = time.monotonic()
    told = worker.pid if way == "worker" else worker.process.pid
    for number in range(2):
        if way == "command":
            worker.interrupt(at_once=number == 1)
        else:
            os.kill(told, signal.SIGINT)
        # A kernel that has not come to the first yet makes one of two; people need longer.
        time.sleep(0.1)
        while is_pending(told, signal.SIGINT):
            time.sleep(0.01)
    assert worker.wait() == -signal.SIGINT
    assert time.monotonic() - began < 2.0
    end = read_events(worker.run.events)[-1]
    assert (end.type, end.data["reason"]) == ("run.stopped", "SIGINT")
    assert end.data["lines"][0].startswith("stopped at once after step 0 of 6")
    assert worker.run.status() == "stopped"


def test_one_signal_waits_for_the_step(tmp_path: Path):
    worker = computing(tmp_path, HOLDING)
    worker.interrupt()
    time.sleep(0.4)
    assert worker.returncode is None
    worker.interrupt(at_once=True)
    assert worker.wait() == -signal.SIGINT


def test_two_signals_within_one_call_of_the_command_are_two():
    """Python's own handlers would take them for one. `map` runs no bytecode between its two calls into C."""
    asked = []

    class Told:
        def interrupt(self, *, at_once: bool) -> None:
            asked.append("at once" if at_once else "save")

    send = getattr(ctypes.CDLL(None), "raise")
    with Interrupts() as interrupts:
        interrupts.pass_to(cast("Worker", Told()))
        list(map(send, [signal.SIGINT] * 2))
    assert asked == ["save", "at once"]
