"""What may interrupt a run: signals, the commands of `records/control.py`, and time that does not count."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Final, Literal

from localdpo.core.errors import UserError
from localdpo.core.process import SignalPipe, StopRequests, handle_once
from localdpo.records.control import Command, CommandFile, take
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir

# Carries out a command. It calls its argument with the answer when that is known; a UserError before that is
# the refusal.
Handler = Callable[[Callable[[str], None]], None]
PAUSE_LOOK_SECONDS: Final = 0.1
# What is carried out in the middle of a reference pass or an evaluation; other commands wait for its end.
_AT_ONCE: Final = frozenset({"pause", "resume", "stop", "cancel"})
PAUSED_IN_WORK: Final = (
    "the run is paused in the middle of an evaluation or of the reference scores; resume it first"
)


class StopRequest:
    """SIGINT and SIGTERM ask the run to save and stop at the next step; a second one ends it at once.

    A second of the same kind ends it even in the middle of a step.

    Attributes:
        reason: the signal's name once it came, "stop" after the command, else None.
        save: whether to save before stopping.
        clock: the run's clock, which must see signals too.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.save = True
        self.clock = Clock()
        self._requests = StopRequests()

    def install(self) -> None:
        """Take over SIGINT, SIGTERM and SIGCONT of this process."""
        for number in (signal.SIGINT, signal.SIGTERM):
            handle_once(number, self._handle)
        self.clock.install()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._requests.take(number, time.monotonic()):
            return
        if self.reason is not None:
            os._exit(128 + number)
        self.reason = signal.Signals(number).name


class Control:
    """Takes the commands of a run and carries them out where it is safe: pausing here, `acts` elsewhere.

    Commands change when things happen, never what: the weights of a run do not depend on them.
    """

    def __init__(
        self, run: RunDir, log: EventWriter, stop: StopRequest, acts: Mapping[Command, Handler]
    ) -> None:
        self._run, self._log, self._stop, self._acts = run, log, stop, acts
        self._step = 0
        self._waiting: list[CommandFile] = []
        self._paused_at: float | None = None
        self._acting_in_pause = False

    @property
    def paused(self) -> bool:
        return self._paused_at is not None

    def between_steps(self, step: int) -> None:
        """Carry out the commands that wait after `step`; returns when the run should continue or stop."""
        self._step = step
        self._look(_AT_ONCE | self._acts.keys())
        self._wait_while_paused(_AT_ONCE | self._acts.keys())

    def within_work(self, step: int) -> None:
        """The same in the middle of work on many batches, for commands that can be carried out there."""
        self._step = step
        self._look(_AT_ONCE)
        if not self._acting_in_pause:
            self._wait_while_paused(_AT_ONCE)

    def refuse_rest(self) -> None:
        """Refuse the commands that are left, and those that come meanwhile: the run has ended."""
        while left := self._waiting + take(self._run):
            self._waiting = []
            for file in left:
                self._answer(file, False, "the run has ended")

    def _wait_while_paused(self, allowed: frozenset[str]) -> None:
        while self.paused and self._stop.reason is None:
            self._stop.clock.rest(PAUSE_LOOK_SECONDS)
            self._look(allowed)

    def _look(self, allowed: frozenset[str]) -> None:
        """Carry out the commands that are `allowed` now, in order; the others wait, but not for a pause."""
        for absence in () if self.paused else self._stop.clock.absences():
            self._log.write("run.continued", self._step, reason=absence.reason, seconds=absence.seconds)
        waited, self._waiting = self._waiting, []
        arrived = take(self._run)
        held_up = arrived if self.paused and not self._acting_in_pause else []
        files = waited + arrived
        cancels = [place for place, file in enumerate(files) if file.command == "cancel"]
        for place, file in enumerate(files):
            if cancels and place < cancels[-1]:
                self._answer(file, file.command == "cancel", "cancelled")
            elif self._stop.reason is not None:
                self._answer(file, False, "the run is stopping")
            elif file.command is None:
                self._answer(file, False, file.problem or "not a command")
            elif file.command in allowed:
                self._obey(file, file.command)
            elif file in held_up and self.paused:
                self._answer(file, False, PAUSED_IN_WORK)
            else:
                self._waiting.append(file)

    def _obey(self, file: CommandFile, command: Command) -> None:
        if command == "pause":
            self._answer(file, True, self._pause())
        elif command == "resume":
            self._answer(file, True, self._resume())
        elif command == "stop":
            self._stop.reason, self._stop.save = "stop", file.save
            self._answer(file, True, "saving and stopping" if file.save else "stopping without saving")
        elif command == "cancel":
            self._answer(file, True, "what was waiting is cancelled")
        else:
            self._act(file, self._acts[command])

    def _act(self, file: CommandFile, act: Handler) -> None:
        answered = False

        def answer(message: str) -> None:
            nonlocal answered
            answered = True
            self._answer(file, True, message)

        self._acting_in_pause = self.paused
        try:
            act(answer)
        except UserError as error:
            if answered:
                raise
            self._answer(file, False, error.message)
        finally:
            self._acting_in_pause = False

    def _pause(self) -> str:
        if self.paused:
            return "the run is already paused"
        self._paused_at = time.time()
        self._log.write("run.paused", self._step)
        return f"paused after step {self._step}"

    def _resume(self) -> str:
        if self._paused_at is None:
            return "the run is not paused"
        seconds, self._paused_at = max(0.0, time.time() - self._paused_at), None
        self._stop.clock.absences()  # part of the pause
        self._log.write("run.continued", self._step, reason="resume", seconds=seconds)
        return f"resumed after step {self._step}"

    def _answer(self, file: CommandFile, ok: bool, message: str) -> None:
        answer_command(self._log, file, ok, message)


def answer_command(log: EventWriter, file: CommandFile, ok: bool, message: str) -> None:
    """Write the acknowledgement that `records/control.py` describes."""
    log.write("control", id=file.id, command=file.command, ok=ok, message=message)


_BEAT_SECONDS: Final = 0.1
# A gap that is too long for the thread's own rhythm, and how long to wait for the signal that explains it.
_GAP_SECONDS: Final = 0.3
_SIGNAL_SECONDS: Final = 0.05
# Shorter absences are not reported.
_REPORTED_SECONDS: Final = 1.0


@dataclass(frozen=True)
class Absence:
    """Time in which the run could not work: stopped by SIGSTOP, or the machine slept. Seconds."""

    reason: Literal["SIGSTOP", "sleep"]
    seconds: float


class Clock:
    """Counts the seconds in which the run could work. Without `install` SIGSTOP counts, too.

    Three kinds of time do not count:

    - A pause: `rest` sleeps and does not count it.
    - SIGSTOP until SIGCONT. A process cannot see SIGSTOP, so a thread looks at the time ten times a second.
      When SIGCONT comes, everything since its last look was spent stopped, to within a tenth of a second. A
      gap between two looks alone is no proof, since other code may have kept the thread waiting: it takes the
      signal too, which Python writes into a pipe (see `SignalPipe`) also while the main thread is inside MLX.
    - The machine's sleep. `time.monotonic` does not run then, on Linux and macOS alike; the clock that does
      run tells how long it was.

    A container that is frozen from outside sends no signal, so its time is counted.
    """

    def __init__(
        self,
        monotonic: Callable[[], float] = time.monotonic,
        awake_or_not: Callable[[], float] | None = None,
    ) -> None:
        self._monotonic = monotonic
        # A clock that runs while the machine sleeps, unlike `time.monotonic`.
        always = time.CLOCK_MONOTONIC if sys.platform == "darwin" else time.CLOCK_BOOTTIME
        self._awake_or_not = awake_or_not or partial(time.clock_gettime, always)
        self._lock = threading.Lock()
        self._away = 0.0
        self._stopped = 0.0
        self._slept = self._sleep_so_far()
        self._last: float | None = None
        self._signals: SignalPipe | None = None

    def install(self) -> None:
        """Watch for SIGSTOP and SIGCONT of this process. Only from the main thread."""
        self._signals, self._last = SignalPipe([signal.SIGCONT]), self._monotonic()
        threading.Thread(target=self._beat_for_ever, name="clock", daemon=True).start()

    def now(self) -> float:
        """Seconds of work since some moment in the past."""
        self.look()
        return self._monotonic() - self._away

    def rest(self, seconds: float) -> None:
        """Sleep without counting it."""
        before = self.now()
        time.sleep(seconds)
        asleep = self.now() - before
        with self._lock:
            self._away += asleep

    def absences(self) -> list[Absence]:
        """The stops and sleeps of more than a second since the last call."""
        self.look()
        with self._lock:
            stopped, self._stopped = self._stopped, 0.0
            before, self._slept = self._slept, self._sleep_so_far()
        absences = [Absence("SIGSTOP", stopped), Absence("sleep", self._slept - before)]
        return [absence for absence in absences if absence.seconds > _REPORTED_SECONDS]

    def look(self) -> None:
        """Subtract the time since the last look if the process was stopped in it."""
        if self._signals is None or self._last is None:
            return
        with self._lock:
            continued = bool(self._signals.read())
            now = self._monotonic()
            gap = now - self._last
            if gap > _GAP_SECONDS and (continued or self._signals.read(_SIGNAL_SECONDS)):
                self._away += gap
                self._stopped += gap
            self._last = now

    def _beat_for_ever(self) -> None:
        assert self._signals is not None
        while True:
            self._signals.wait(_BEAT_SECONDS)
            self.look()

    def _sleep_so_far(self) -> float:
        return self._awake_or_not() - self._monotonic()
