from __future__ import annotations

import subprocess
import sys
import time

import pytest

from localdpo.train.control import Absence, Clock

pytestmark = pytest.mark.slow

# Stops itself for SECONDS by way of a child that sends SIGCONT, then says what the clock and the wall saw.
STOPPED = """
import os, signal, subprocess, sys, time
from localdpo.train.control import Clock
clock = Clock()
clock.install()
time.sleep(0.2)
worked, wall = clock.now(), time.monotonic()
waker = f"import os, time; time.sleep({sys.argv[1]}); os.kill({os.getpid()}, {int(signal.SIGCONT)})"
child = subprocess.Popen([sys.executable, "-c", waker])
os.kill(os.getpid(), signal.SIGSTOP)
worked, wall = clock.now() - worked, time.monotonic() - wall
child.wait()
print(wall - worked, *[f"{absence.reason} {absence.seconds}" for absence in clock.absences()])
"""
# Keeps the interpreter to itself for a while, so that the clock's thread cannot run, without being stopped.
BUSY = """
import re, time
from localdpo.train.control import Clock
clock = Clock()
clock.install()
length, lasted = 18, 0.0
while lasted < 0.4:
    length += 1
    worked, wall = clock.now(), time.monotonic()
    re.match("(a*)*b", "a" * length)
    lasted = time.monotonic() - wall
    missed = (time.monotonic() - wall) - (clock.now() - worked)
print(missed)
"""


class Time:
    """Two clocks by hand: `working` stands still while the machine sleeps."""

    def __init__(self) -> None:
        self.working = self.all = 100.0

    def go(self, seconds: float) -> None:
        self.working += seconds
        self.all += seconds


@pytest.fixture
def hands() -> Time:
    return Time()


@pytest.fixture
def clock(hands: Time, monkeypatch: pytest.MonkeyPatch) -> Clock:
    monkeypatch.setattr(time, "sleep", hands.go)
    return Clock(lambda: hands.working, lambda: hands.all)


def output(code: str, *arguments: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_rest_is_not_counted(clock: Clock, hands: Time):
    began = clock.now()
    hands.go(2.0)
    clock.rest(5.0)
    hands.go(1.0)
    assert clock.now() - began == pytest.approx(3.0)
    assert clock.absences() == []


def test_the_machines_sleep_is_told_once(clock: Clock, hands: Time):
    began = clock.now()
    hands.go(2.0)
    hands.all += 60.0
    assert clock.now() - began == pytest.approx(2.0)
    assert clock.absences() == [Absence("sleep", 60.0)]
    assert clock.absences() == []
    hands.all += 0.5
    assert clock.absences() == []


def test_a_time_stopped_by_a_signal_is_not_counted():
    missed, reason, told = output(STOPPED, "1.5")
    # The child takes its time to start; what it waited for is the least.
    assert float(missed) > 1.4
    assert reason == "SIGSTOP"
    assert float(told) == pytest.approx(float(missed), abs=0.3)


def test_an_interpreter_that_is_busy_is_not_stopped():
    (missed,) = output(BUSY)
    assert float(missed) < 0.1
