"""A run as the screens follow it: its log, read in small pieces, the commands sent to its worker, and how
often it is looked at and drawn.

Rendering is throttled: training comes first, and one on the CPU shares its cores with the viewer. Keys do not
wait: what they change is drawn by their actions.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Final, NamedTuple

from pydantic_core import from_json

from localdpo.core.text import format_seconds
from localdpo.dashboard.state import RunState
from localdpo.records.checkpoints import damage_of
from localdpo.records.control import Acknowledgement
from localdpo.records.events import EventTail
from localdpo.records.rundir import RunDir

# Bytes between two looks at the clock: some 370 lines, 4 ms.
_PIECE: Final = 1 << 18


class RunFeed:
    """A run as a screen follows it.

    Attributes:
        run: the run.
        state: what the part of the log that was read adds up to.
        alive: whether a worker held the run's lock at the last poll.
    """

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.state = RunState(run.name)
        self.alive = run.is_running()
        self._tail = EventTail(run.events, from_json)
        self._damage: str | None = None
        self._has_looked = False

    @property
    def behind(self) -> bool:
        """Whether the log holds more than was read."""
        return self._tail.behind

    @property
    def trains_on_cpu(self) -> bool:
        """Whether a worker computes on the CPU, whose cores the screen shares; not while it is paused."""
        # A device is named with its library: `cpu (libopenblas.so.0)`.
        is_on_cpu = (self.state.start.text("device") or "").split(" ")[0] == "cpu"
        return self.alive and is_on_cpu and self.state.progress.phase != "paused"

    def poll(self, budget: float = 0.02) -> bool:
        """Read on for about `budget` seconds; whether anything changed, the worker's life included."""
        # Looked at before the log, so that what a worker wrote before its end is never missed.
        was_alive, self.alive = self.alive, self.run.is_running()
        has_changed = was_alive != self.alive
        deadline = time.monotonic() + budget
        # No garbage collection: log lines hold no cycles, and looking for some takes a tenth of the time.
        collects = gc.isenabled()
        gc.disable()
        try:
            while True:
                events = self._tail.poll(_PIECE)
                if has_changed or events or not self._has_looked:
                    self._has_looked = True
                    self._damage = damage_of(self.run, self._tail, alive=self.alive or self._tail.behind)
                has_changed |= self.state.feed(events, self._damage)
                if not self._tail.behind or time.monotonic() >= deadline:
                    return has_changed
        finally:
            if collects:
                gc.enable()


class PendingCommands:
    """The commands sent to the worker from here that are not answered yet, in the order of sending."""

    def __init__(self) -> None:
        # id -> (command, Unix time of sending)
        self._sent: dict[str, tuple[str, float]] = {}

    def add(self, id: str, command: str, now: float) -> None:
        self._sent[id] = (command, now)

    def __bool__(self) -> bool:
        return bool(self._sent)

    def latest(self, *commands: str) -> str | None:
        """The newest pending one of these commands, None if none is."""
        pending = [command for command, _ in self._sent.values() if command in commands]
        return pending[-1] if pending else None

    def settle(self, answers: Iterable[Acknowledgement], alive: bool) -> list[Acknowledgement]:
        """The answers to pending commands; a worker that is gone refuses all that are left."""
        settled = []
        for answer in answers:
            if answer.id in self._sent:
                command, _ = self._sent.pop(answer.id)
                settled.append(replace(answer, command=command))
        if not alive:
            settled += [
                Acknowledgement(id, command, False, "the worker ended before it answered")
                for id, (command, _) in self._sent.items()
                if command != "stop"  # the end itself answers it
            ]
            self._sent.clear()
        return settled

    def status(self, now: float) -> str:
        """`sent: pause, 3s (X cancels)`, empty when nothing is pending."""
        if not self._sent:
            return ""
        commands, times = zip(*self._sent.values(), strict=True)
        return f"sent: {', '.join(commands)}, {format_seconds(max(0.0, now - times[0]))} (X cancels)"


class Interval:
    """Something that is done at most once in `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last = -math.inf

    @property
    def has_passed(self) -> bool:
        """Whether `seconds` have passed since `restart`; true before the first."""
        return time.monotonic() - self._last >= self._seconds

    def restart(self) -> None:
        """It was done now."""
        self._last = time.monotonic()

    def expire(self) -> None:
        """It may be done again at once."""
        self._last = -math.inf


class CpuLimit(NamedTuple):
    """`share` of one core in the long run, `burst` processor seconds at once, `longest` wait in seconds."""

    share: float
    burst: float
    longest: float


IDLE_CPU: Final = CpuLimit(share=0.1, burst=0.2, longest=0.6)
# Measured on two cores that were both at work: a second of drawing costs the training about as much.
TRAINING_ON_CPU: Final = CpuLimit(share=0.005, burst=3.0, longest=8.0)


class RenderThrottle:
    """Says when the next frame may be drawn.

    A frame is due while there is credit. Credit grows with time and is spent by the processor time of this
    process. A training on a GPU hardly notices a viewer, so the viewer may draw as often as the log grows;
    beside one on the CPU it may do so for a short while, and then a few frames a minute.

    `clock`: seconds; `used`: processor seconds of this process.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, used: Callable[[], float] = time.process_time
    ) -> None:
        self._clock, self._used = clock, used
        self._last_look, self._last_used = clock(), used()
        self._last_frame = self._last_look
        self._credit = {limit: limit.burst for limit in (IDLE_CPU, TRAINING_ON_CPU)}

    def is_due(self, *, beside_training: bool) -> bool:
        """Whether a frame may be drawn. `beside_training`: whether a training wants the same cores.

        One is due after `longest` seconds whatever was spent: keys held down spend without a frame of ours.
        """
        now, used = self._clock(), self._used()
        for limit, credit in self._credit.items():
            credit += (now - self._last_look) * limit.share - (used - self._last_used)
            # Debts are forgotten beyond what `longest` pays.
            self._credit[limit] = min(max(credit, -limit.longest * limit.share), limit.burst)
        self._last_look, self._last_used = now, used
        limit = TRAINING_ON_CPU if beside_training else IDLE_CPU
        is_due = self._credit[limit] >= 0 or now - self._last_frame >= limit.longest
        if is_due:
            self._last_frame = now
        return is_due
