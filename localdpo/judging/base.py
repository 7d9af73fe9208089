"""What a judge is asked, what it says, and what may go wrong.

LocalDPOError
  UserError
    JudgeStopped       nothing more can be asked (a wrong key, no money, a limit that lasts for hours)
RuntimeError
  JudgeBusy            this question may be asked again later (429, 5xx, a dropped connection)
  Interrupted          the command is being stopped while a question waits; never leaves this room
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from localdpo.core.errors import UserError
from localdpo.records.verdicts import Verdict


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
    """The command is being stopped; whoever waits has to give up."""


class Judge(Protocol):
    """One judge. `ask` may be called from several threads, at most `concurrency` at a time.

    Attributes:
        name: for people and tables, such as "rules" or "anthropic claude-opus-4-6".
        identity: everything that its verdicts depend on besides the question (model, rubric, schema, ...);
            part of the journal's key, so a verdict is never reused for another judge.
    """

    name: str
    identity: Mapping[str, str]
    concurrency: int

    def ask(self, question: Question) -> Verdict:
        """One verdict. Raises JudgeBusy or JudgeStopped; never invents a verdict."""
        ...

    def worst_case_usd(self, question: Question) -> float:
        """The most that asking this question once can cost; 0 for a local judge."""
        ...
