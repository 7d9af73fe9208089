"""Several judges behind one name: a jury, or one judge under each principle of a constitution.

Each member is asked (and journaled) on its own, and a rule makes one verdict of theirs.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from typing import Literal

from localdpo.judging.base import CHOICE_SCORES, Judge, Question
from localdpo.judging.rubric import Constitution, Mode, Rubric
from localdpo.records.verdicts import Usage, Verdict

CombiningRule = Literal["majority", "mean"]
Principles = Literal["sample", "all"]


class Panel(Judge):
    """Base of the jury and of the constitution: who is asked, and how their verdicts become one."""

    members: Sequence[Judge]

    def members_for(self, question: Question) -> Sequence[Judge]:
        """The judges that this question goes to; the same ones each time for the same question."""
        raise NotImplementedError

    def combine(self, verdicts: Sequence[Verdict]) -> Verdict:
        """One verdict from those of `members_for(question)`, in their order."""
        raise NotImplementedError

    def ask(self, question: Question) -> Verdict:
        """Ask every member in turn. A JudgeSession does not use this: it asks the members itself."""
        return self.combine([member.ask(question) for member in self.members_for(question)])

    def leaves(self, question: Question) -> list[Judge]:
        return [leaf for member in self.members_for(question) for leaf in member.leaves(question)]

    def assemble(self, question: Question, verdicts: Iterator[Verdict]) -> Verdict:
        return self.combine([member.assemble(question, verdicts) for member in self.members_for(question)])

    def worst_case_usd(self, question: Question) -> float:
        return sum(member.worst_case_usd(question) for member in self.members_for(question))

    def find_key(self) -> None:
        for member in self.members:
            member.find_key()


class Jury(Panel):
    """Judges that vote.

    "majority": the choice of more than half of those that said something, else a tie; the median of scores.
    "mean": first counts 1, a tie 1/2, second 0, and the mean is above, at or below 1/2; the mean of scores.
    """

    def __init__(self, members: Sequence[Judge], rule: CombiningRule = "majority") -> None:
        if len(members) < 2:
            raise ValueError("a jury has at least two members")
        self.members = list(members)
        self.rule: CombiningRule = rule
        self.name = f"jury of {' + '.join(member.name for member in self.members)}"
        self.concurrency = max(member.concurrency for member in self.members)
        self.identity = {"jury": " + ".join(member.name for member in self.members), "rule": rule}

    def members_for(self, question: Question) -> Sequence[Judge]:
        return self.members

    def combine(self, verdicts: Sequence[Verdict]) -> Verdict:
        return agree(verdicts, [member.name for member in self.members], self.rule)


class ConstitutionJudge(Panel):
    """The same judge under each principle. The verdict keeps the id of the principle that was asked about.

    `principles`: "sample" asks about one principle a question, drawn by the question's id, so the same one
    each time and in both orders; "all" asks about every one and takes the mean.
    """

    def __init__(
        self,
        constitution: Constitution,
        mode: Mode,
        principles: Principles,
        build: Callable[[Rubric], Judge],
    ) -> None:
        self.constitution = constitution
        self.principles = principles
        self.members = [build(rubric) for rubric in constitution.rubrics(mode)]
        self.name = f"{self.members[0].name} under {constitution.name} ({principles})"
        self.concurrency = min(member.concurrency for member in self.members)
        names = [principle.id for principle in constitution.principles]
        self.identity = {"constitution": constitution.name, "use": principles, "ids": " ".join(names)}

    def members_for(self, question: Question) -> Sequence[Judge]:
        if self.principles == "all":
            return self.members
        return [self.members[self.constitution.drawn(question.id)]]

    def combine(self, verdicts: Sequence[Verdict]) -> Verdict:
        if len(verdicts) == 1:
            return verdicts[0]
        names = [verdict.principle or "" for verdict in verdicts]
        return replace(agree(verdicts, names, "mean"), principle=" ".join(names))


def agree(verdicts: Sequence[Verdict], names: Sequence[str], rule: CombiningRule) -> Verdict:
    """One verdict from those of several judges, called `names`.

    More than half of them have to be "ok"; else the commonest other status is the jury's, the first of
    equally common ones. The reason holds each one's status or choice and its words, the usage is the sum.
    """
    valid = [verdict for verdict in verdicts if verdict.status == "ok"]
    words = []
    for name, verdict in zip(names, verdicts, strict=True):
        said = verdict.choice if verdict.choice is not None else verdict.score
        words.append(f"{name}: {verdict.status if said is None else said}. {verdict.reason}".rstrip(". "))
    result = _decide(valid, rule)
    if 2 * len(valid) <= len(verdicts):
        others = Counter(verdict.status for verdict in verdicts if verdict.status != "ok")
        result = Verdict(others.most_common(1)[0][0])
    return replace(result, reason="\n".join(words), usage=add_usage(verdicts))


def _decide(valid: Sequence[Verdict], rule: CombiningRule) -> Verdict:
    choices = [verdict.choice for verdict in valid if verdict.choice is not None]
    scores = [verdict.score for verdict in valid if verdict.score is not None]
    if scores:
        score = statistics.fmean(scores) if rule == "mean" else statistics.median(scores)
        return Verdict("ok", score=score)
    if rule == "mean":
        balance = sum(CHOICE_SCORES[choice] - 0.5 for choice in choices)
        return Verdict("ok", choice="first" if balance > 0 else "second" if balance < 0 else "tie")
    votes = Counter(choices).most_common(1)
    won = bool(votes) and 2 * votes[0][1] > len(choices)
    return Verdict("ok", choice=votes[0][0] if won else "tie")


def add_usage(verdicts: Sequence[Verdict]) -> Usage:
    """What several verdicts cost together."""
    names = (field.name for field in fields(Usage))
    return Usage(**{name: sum(getattr(verdict.usage, name) for verdict in verdicts) for name in names})
