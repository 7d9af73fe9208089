"""The commands that were sent to the worker from here and are not answered yet. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from localdpo.core.text import format_seconds
from localdpo.records.control import Acknowledgement


class PendingCommands:
    """The commands without an answer, in the order of sending."""

    def __init__(self) -> None:
        # id -> (command, Unix time of sending)
        self._sent: dict[str, tuple[str, float]] = {}

    def add(self, id: str, command: str, now: float) -> None:
        """A command was sent."""
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
        """`sent: pause, 3s`, empty when nothing is pending."""
        if not self._sent:
            return ""
        command, time = next(iter(self._sent.values()))
        more = f" +{len(self._sent) - 1}" if len(self._sent) > 1 else ""
        return f"sent: {command}{more}, {format_seconds(max(0.0, now - time))}"
