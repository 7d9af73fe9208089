"""What the worker was asked for from here, and what it answered. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from localdpo.core.text import format_seconds
from localdpo.records.control import Acknowledgement


@dataclass(frozen=True)
class Waiting:
    """A command without an answer. `time`: when it was sent, Unix seconds."""

    id: str
    command: str
    time: float


@dataclass(frozen=True)
class Answer:
    """What became of a command."""

    command: str
    ok: bool
    message: str


class Asked:
    """The commands that wait for their answer."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting] = {}

    def add(self, id: str, command: str, now: float) -> None:
        """A command was sent."""
        self._waiting[id] = Waiting(id, command, now)

    @property
    def is_waiting(self) -> bool:
        """Whether any command has no answer yet."""
        return bool(self._waiting)

    def latest(self, *commands: str) -> str | None:
        """The newest of these commands that waits, None if none does."""
        found = [waiting.command for waiting in self._waiting.values() if waiting.command in commands]
        return found[-1] if found else None

    def settle(self, answers: Iterable[Acknowledgement], alive: bool) -> list[Answer]:
        """The answers to what waited; what waits for a worker that is gone is answered with that."""
        settled = []
        for answer in answers:
            waiting = self._waiting.pop(answer.id, None)
            if waiting is not None:
                settled.append(Answer(waiting.command, answer.ok, answer.message))
        if not alive:
            settled += [
                Answer(waiting.command, False, "the worker ended before it answered")
                for waiting in self._waiting.values()
                # A stop is answered by the end itself.
                if waiting.command != "stop"
            ]
            self._waiting.clear()
        return settled

    def status(self, now: float) -> str:
        """`asked: pause, 3s`, empty when nothing waits."""
        if not self._waiting:
            return ""
        first = next(iter(self._waiting.values()))
        more = f" +{len(self._waiting) - 1}" if len(self._waiting) > 1 else ""
        return f"asked: {first.command}{more}, {format_seconds(max(0.0, now - first.time))}"
