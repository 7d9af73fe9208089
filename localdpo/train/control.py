"""What may interrupt a run: signals, and the commands of `records/control.py`."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Final

from localdpo.core.errors import UserError
from localdpo.core.process import StopRequests, handle_once
from localdpo.records.control import Command, CommandFile, take
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir
from localdpo.train.clock import Clock

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

    def refuse_rest(self, message: str) -> None:
        """Refuse the commands that are left, and those that come meanwhile."""
        while left := self._waiting + take(self._run):
            self._waiting = []
            for file in left:
                self._answer(file, False, message)

    def _wait_while_paused(self, allowed: frozenset[str]) -> None:
        while self.paused and self._stop.reason is None:
            self._stop.clock.rest(PAUSE_LOOK_SECONDS)
            self._look(allowed)

    def _look(self, allowed: frozenset[str]) -> None:
        """Carry out the commands that are `allowed` now, in order; the others wait, but not for a pause."""
        self._report_absences()
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

    def _report_absences(self) -> None:
        if not self.paused:
            for absence in self._stop.clock.absences():
                self._log.write("run.continued", self._step, reason=absence.reason, seconds=absence.seconds)

    def _answer(self, file: CommandFile, ok: bool, message: str) -> None:
        answer_command(self._log, file, ok, message)


def answer_command(log: EventWriter, file: CommandFile, ok: bool, message: str) -> None:
    """Write the acknowledgement that `records/control.py` describes."""
    log.write("control", id=file.id, command=file.command, ok=ok, message=message)
