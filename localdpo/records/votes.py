"""The votes of people on two answers: `runs/NAME/votes.jsonl`, append-only.

    {"time":1700000000.0,"prompt":"5d41...","first":"dpo","second":"sft","choice":"first","seed":7,
     "answers":["9b1c...","02fa..."]}
    {"time":1700000003.0,"undo":"5d41...","answers":["9b1c...","02fa..."]}

`first` and `second` are the contestants in the order in which they were shown, `answers` the ids of the two
texts (`text_id`), so that a vote counts only for these two texts, whichever models wrote them. The latest
vote on two texts counts; `undo` takes it back, and with it the one before counts again. See records/log.py
for how lines are written.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from localdpo.core.errors import UserError
from localdpo.records.log import DAMAGE, LogTail, LogWriter, as_record, decode, encode
from localdpo.records.verdicts import Choice

_ID_DIGITS: Final = 16
# (id of the prompt, ids of both texts in a fixed order): what a vote is about.
Subject = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Vote:
    """One vote.

    Attributes:
        time: Unix time, seconds.
        prompt: the prompt's id.
        first, second: names of the contestants, in the order shown.
        choice: which of the two is better.
        seed: of the sides, see `sides`.
        answers: `text_id` of the two texts, in the order shown.
    """

    time: float
    prompt: str
    first: str
    second: str
    choice: Choice
    seed: int
    answers: tuple[str, str]

    @property
    def subject(self) -> Subject:
        """What the vote is about, whatever the order shown."""
        return subject(self.prompt, *self.answers)

    @property
    def winner(self) -> str | None:
        """The name of the contestant that won, None for a tie."""
        return {"first": self.first, "second": self.second, "tie": None}[self.choice]


def text_id(text: str) -> str:
    """The first digits of the sha256 of a text."""
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()[:_ID_DIGITS]


def subject(prompt: str, one: str, other: str) -> Subject:
    """The prompt's id and the ids of two texts, the smaller first."""
    return (prompt, min(one, other), max(one, other))


def sides(prompt: str, names: tuple[str, str], seed: int) -> tuple[str, str]:
    """The two names in the order to show them in: by chance, the same for the same prompt and seed."""
    digest = hashlib.sha256(json.dumps([seed, prompt, sorted(names)]).encode()).digest()
    one, other = sorted(names)
    return (one, other) if digest[0] % 2 == 0 else (other, one)


class Votes:
    """The votes that count, from a file that may not exist yet.

    Raises UserError with the line's number when a complete line is no vote.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._stacks: dict[Subject, list[Vote]] = {}
        for number, line in LogTail(path).lines():
            self._take(line, f"{self.path}:{number}")

    def of(self, about: Subject) -> Vote | None:
        """The vote on these two texts, None without one."""
        stack = self._stacks.get(about)
        return stack[-1] if stack else None

    def all(self) -> list[Vote]:
        """The votes that count, oldest first."""
        return sorted((stack[-1] for stack in self._stacks.values() if stack), key=lambda vote: vote.time)

    def add(self, vote: Vote) -> None:
        """Count a vote and append it to the file."""
        self._append(asdict(vote))
        self._stacks.setdefault(vote.subject, []).append(vote)

    def undo(self, about: Subject) -> Vote | None:
        """Take back the latest vote on two texts, and say so in the file; None if there was none."""
        if self.of(about) is None:
            return None
        self._append({"time": time.time(), "undo": about[0], "answers": about[1:]})
        return self._stacks[about].pop()

    def _append(self, entry: Mapping[str, Any]) -> None:
        with LogWriter(self.path, durable=True) as log:
            log.append(encode(entry))

    def _take(self, line: bytes, where: str) -> None:
        try:
            entry = decode(line)
            one, other = map(str, entry["answers"])
            if "undo" in entry:
                stack = self._stacks.get(subject(str(entry["undo"]), one, other))
                if stack:
                    stack.pop()
                return
            vote = as_record(Vote, entry)
        except DAMAGE as error:
            raise UserError(
                f"{where}: not a vote ({type(error).__name__}: {error}); remove the line to continue"
            ) from error
        self._stacks.setdefault(vote.subject, []).append(vote)


def tally(votes: Iterable[Vote], one: str, other: str) -> tuple[int, int, int]:
    """(wins of `one`, ties, wins of `other`) among the votes on these two contestants."""
    about = [vote for vote in votes if {vote.first, vote.second} == {one, other}]
    won = sum(vote.winner == one for vote in about)
    ties = sum(vote.winner is None for vote in about)
    return won, ties, len(about) - won - ties
