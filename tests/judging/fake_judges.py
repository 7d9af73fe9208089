"""Judges without a server, pairs to ask them about, and how questions are asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from localdpo.judging.base import Judge, Question
from localdpo.judging.run import Journal, JudgeSession
from localdpo.records.verdicts import Usage, Verdict


class FakeJudge(Judge):
    """Answers with `decide(question)`; counts what it was asked."""

    def __init__(
        self,
        decide: Callable[[Question], Verdict],
        name: str = "fake",
        concurrency: int = 1,
        worst: float = 0.0,
    ) -> None:
        self.decide = decide
        self.name = name
        self.identity: Mapping[str, str] = {"judge": name}
        self.concurrency = concurrency
        self.worst = worst
        self.asked: list[Question] = []
        self.lock = threading.Lock()

    def ask(self, question: Question) -> Verdict:
        with self.lock:
            self.asked.append(question)
        return self.decide(question)

    def worst_case_usd(self, question: Question) -> float:
        return self.worst


def always(choice: str) -> Callable[[Question], Verdict]:
    return lambda question: Verdict("ok", choice=choice, reason="always")  # type: ignore[arg-type]


def longer(question: Question) -> Verdict:
    """The longer answer."""
    first, second = (len(answer) for answer in question.answers)
    choice = "first" if first > second else "second" if second > first else "tie"
    return Verdict("ok", choice=choice, usage=Usage(10, 2, 0, 0.01))


def pairs(count: int) -> list[Question]:
    """Pairs of different answers, the first the longer one in two of three."""
    return [
        Question(
            f"{number}",
            f"question {number}",
            ("x" * (number % 3 + 1), "y" * (3 - number % 3) + "z"[: number % 2]),
        )
        for number in range(count)
    ]


def run_questions(
    judge: Judge, questions: Sequence[Question], journal: Journal | None = None, **options: Any
) -> list[Verdict]:
    """The verdicts of one session; `options` as JudgeSession takes them."""
    return JudgeSession(journal, **options).ask(judge, questions)
