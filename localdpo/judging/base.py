"""What a judge is asked, what it says, and what may go wrong.

Which of two answers is better is always asked in both orders: about (a, b) and about (b, a). The judge
prefers a if it does both times. When the two verdicts disagree, one of them a tie included, the pair counts
as a tie and as a flip: what the judge said depended on the order. A pair without two verdicts that say
something has no score. Two equal answers are a tie that nobody is asked about.

LocalDPOError
  UserError
    JudgeStopped       nothing more can be asked (a wrong key, no money, a limit that lasts for hours)
RuntimeError
  JudgeBusy            this question may be asked again later (429, 5xx, a dropped connection)
  Interrupted          the command is being stopped while a question waits; never leaves this room
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from localdpo.core.errors import UserError
from localdpo.records.verdicts import Choice, Verdict

# How much Claude thinks before it answers.
Effort = Literal["low", "medium", "high", "xhigh", "max"]
CHOICE_SCORES: Final[Mapping[Choice, float]] = {"first": 1.0, "tie": 0.5, "second": 0.0}
SWAPPED: Final[Mapping[Choice, Choice]] = {"first": "second", "tie": "tie", "second": "first"}
_SAME: Final = Verdict("ok", choice="tie", reason="the two answers are the same text; nobody was asked")


@dataclass(frozen=True, slots=True)
class Question:
    """One thing to judge.

    Attributes:
        id: of the prompt; the same for every question about it.
        prompt: the conversation before the answer, as text.
        answers: one, to be scored from 1 to 5; or two, to be compared in this order.
        facts: other columns of the prompt's row, for judges that check facts. No model is shown them.
    """

    id: str
    prompt: str
    answers: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


class JudgeStopped(UserError):
    """Nothing more can be asked now; what was answered is kept, and a later run resumes from there."""


class JudgeBusy(RuntimeError):
    """The question was not answered but may be asked again, after `after` seconds if the server said so.

    `billed`: the server may have answered and charged for it (a timeout, a reply cut in the middle), so a
    budget has to count the worst case.
    """

    def __init__(self, message: str, after: float | None = None, billed: bool = False) -> None:
        super().__init__(message)
        self.after = after
        self.billed = billed


class Interrupted(RuntimeError):
    """The command is being stopped; every wait for an answer ends."""


class Judge(ABC):
    """One judge. `ask` may be called from several threads, at most `concurrency` at a time.

    Attributes:
        name: for people and tables, such as "rules" or "anthropic claude-opus-4-6".
        identity: everything that its verdicts depend on besides the question (model, rubric, schema, ...);
            part of the journal's key, so a verdict is never reused for another judge.
        local_model: the model that it asks in this process, None if it asks none.
    """

    name: str
    identity: Mapping[str, str]
    concurrency: int = 1
    local_model: str | None = None

    @abstractmethod
    def ask(self, question: Question) -> Verdict:
        """One verdict. Raises JudgeBusy or JudgeStopped; never invents a verdict."""

    def leaves(self, question: Question) -> list[Judge]:
        """The judges that are really asked: of a panel its members."""
        return [self]

    def assemble(self, question: Question, verdicts: Iterator[Verdict]) -> Verdict:
        """The verdict from those of `leaves(question)`, taken in that order."""
        return next(verdicts)

    def worst_case_usd(self, question: Question) -> float:
        """The most that asking this question once can cost; 0 for a local judge."""
        return 0.0

    def rest(self) -> None:
        """Give back the memory of `local_model`; the next question loads it again."""
        return None

    def find_key(self) -> None:
        """Raise JudgeStopped if there is no key for a server that needs one; called before long work."""
        return None


# --- pairs in both orders ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PairVerdict:
    """What a judge said to one pair (a, b).

    Attributes:
        first: to (a, b).
        second: to (b, a); its choice is in that order.
        identical: a and b are the same text, a tie that was not asked.
    """

    id: str
    first: Verdict
    second: Verdict
    identical: bool = False

    @property
    def choices(self) -> tuple[Choice, Choice] | None:
        """Both choices, each in the order it was asked in; None unless both verdicts are "ok"."""
        if self.first.choice is None or self.second.choice is None:
            return None
        return self.first.choice, self.second.choice

    @property
    def valid(self) -> bool:
        """Whether there is a score."""
        return self.choices is not None

    @property
    def flipped(self) -> bool:
        """Whether the two orders disagree."""
        return self.choices is not None and self.choices[0] != SWAPPED[self.choices[1]]

    @property
    def score(self) -> float | None:
        """1 when a won, 0 when b won, 1/2 for a tie or a disagreement; None without two verdicts."""
        if self.choices is None:
            return None
        return 0.5 if self.flipped else CHOICE_SCORES[self.choices[0]]


def both_orders(pairs: Iterable[Question]) -> list[Question]:
    """Two questions for each pair whose answers differ, (a, b) and then (b, a), in the pairs' order."""
    return [
        replace(pair, answers=answers)
        for pair in pairs
        if pair.answers[0] != pair.answers[1]
        for answers in (pair.answers, pair.answers[::-1])
    ]


def collect(pairs: Iterable[Question], verdicts: Iterable[Verdict]) -> list[PairVerdict]:
    """The pairs' verdicts from those of `both_orders(pairs)`, in the same order."""
    rest = iter(verdicts)
    return [
        PairVerdict(pair.id, _SAME, _SAME, identical=True)
        if pair.answers[0] == pair.answers[1]
        else PairVerdict(pair.id, next(rest), next(rest))
        for pair in pairs
    ]
