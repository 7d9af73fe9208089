"""What the tests of evaluations share: prompts, answers and judges that need no model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from localdpo.answering.contestants import Contestant
from localdpo.data.prompts import PromptRow
from localdpo.evals.evaluate import AnsweredPrompts
from localdpo.judging.base import Judge, JudgeStopped, Question
from localdpo.records.answers import AnswerRecord, Role, Sampling
from localdpo.records.rundir import RunDir
from localdpo.records.verdicts import Usage, Verdict

Say = Callable[[Question], Verdict]
ROLES: tuple[tuple[str, str, Role], ...] = (
    ("base", "base", "base"),
    ("sft", "SFT", "start"),
    ("dpo", "DPO", "trained"),
)


def contestants(roles: Sequence[tuple[str, str, Role]] = ROLES) -> list[Contestant]:
    return [Contestant(name, label, None, "none", role) for name, label, role in roles]


def prompts(count: int, **facts: Sequence[object]) -> list[PromptRow]:
    """Prompts with columns: `category=["a", "b"]` goes round."""
    return [
        PromptRow(f"prompt {i}", {name: values[i % len(values)] for name, values in facts.items()})
        for i in range(count)
    ]


def record(i: int, name: str, text: str) -> AnswerRecord:
    return AnswerRecord(i, name, text, len(text.split()), True)


def answers(texts: Mapping[str, Callable[[int], str]], count: int) -> dict[str, list[AnswerRecord]]:
    return {name: [record(i, name, text(i)) for i in range(count)] for name, text in texts.items()}


def asked(folder: Path, count: int, **facts: Sequence[object]) -> AnsweredPrompts:
    """`count` prompts; DPO's answers are the longer the later, SFT's are all alike."""
    texts = {
        "base": lambda i: f"base {i}",
        "sft": lambda i: f"sft says {i}",
        "dpo": lambda i: f"dpo{' so' * (i % 4)} {i}",
    }
    rows = prompts(count, **facts)
    return AnsweredPrompts(
        RunDir(folder), contestants(), rows, "a file", Sampling(16, 1.0, 3), answers(texts, count)
    )


class Told(Judge):
    """A judge that says what a function says, and counts the questions."""

    def __init__(self, say: Say, concurrency: int = 16, name: str = "told") -> None:
        self.say = say
        self.name = name
        self.identity = {"judge": name}
        self.concurrency = concurrency
        self.count = 0
        self.stop_after: int | None = None
        self._lock = threading.Lock()

    def ask(self, question: Question) -> Verdict:
        with self._lock:
            if self.stop_after is not None and self.count >= self.stop_after:
                raise JudgeStopped("enough")
            self.count += 1
        return self.say(question)

    def worst_case_usd(self, question: Question) -> float:
        return 0.001


def first(question: Question) -> Verdict:
    return Verdict("ok", choice="first")


def tie(question: Question) -> Verdict:
    return Verdict("ok", choice="tie")


def rank(text: str) -> int:
    """Above all the DPO's answers, then SFT's; DPO's of prompts divisible by 5 are bad."""
    number = int(text.split()[-1])
    if text.startswith("dpo"):
        return 0 if number % 5 == 0 else 3
    return 2 if text.startswith("sft") else 1


def fair(question: Question) -> Verdict:
    """Goes by `rank`, refuses every prompt ending in 7, is swayed by the order where it ends in 3."""
    if len(question.answers) == 1:
        return Verdict("ok", score=1.0 + rank(question.answers[0]), usage=Usage(10, 2, 0, 0.001))
    if question.prompt.endswith("7"):
        return Verdict("refused", reason="no")
    if question.prompt.endswith("3"):
        return Verdict("ok", choice="first", reason="order")
    one, other = map(rank, question.answers)
    return Verdict(
        "ok", choice="first" if one > other else "second", reason="rank", usage=Usage(10, 2, 0, 0.001)
    )


def swapped(question: Question) -> Verdict:
    """The other way round than `fair`."""
    verdict = fair(question)
    if len(question.answers) == 1 or verdict.reason != "rank":
        return verdict
    return Verdict("ok", choice="second" if verdict.choice == "first" else "first", reason="rank")
