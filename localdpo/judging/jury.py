"""Several judges as one: each is asked (and journaled) on its own, and a rule makes one verdict of theirs."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, Literal

from localdpo.judging.base import Choice, Judge, Question, Verdict
from localdpo.judging.panel import Panel, add_usage

Rule = Literal["majority", "mean"]
_VALUES: Final[dict[Choice, float]] = {"first": 1.0, "tie": 0.5, "second": 0.0}


class Jury(Panel):
    """Judges that vote.

    "majority": the choice of more than half of those that said something, else a tie; the median of scores.
    "mean": first counts 1, a tie 1/2, second 0, and the mean is above, at or below 1/2; the mean of scores.
    """

    def __init__(self, members: Sequence[Judge], rule: Rule = "majority") -> None:
        if len(members) < 2:
            raise ValueError("a jury has at least two members")
        self.members = list(members)
        self.rule: Rule = rule
        self.name = f"jury of {' + '.join(member.name for member in self.members)}"
        self.concurrency = max(member.concurrency for member in self.members)
        self.identity = {"jury": " + ".join(member.name for member in self.members), "rule": rule}

    def members_for(self, question: Question) -> Sequence[Judge]:
        return self.members

    def combine(self, verdicts: Sequence[Verdict]) -> Verdict:
        return agree(verdicts, [member.name for member in self.members], self.rule)


def agree(verdicts: Sequence[Verdict], names: Sequence[str], rule: Rule) -> Verdict:
    """One verdict from those of several judges, called `names`.

    More than half of them have to be "ok"; else the commonest other status is the jury's, the first of
    equally common ones. The reason holds each one's status or choice and its words, the usage is the sum.
    """
    valid = [verdict for verdict in verdicts if verdict.status == "ok"]
    words = [f"{name}: {_said(verdict)}" for name, verdict in zip(names, verdicts, strict=True)]
    result = _decide(valid, rule)
    if 2 * len(valid) <= len(verdicts):
        others = Counter(verdict.status for verdict in verdicts if verdict.status != "ok")
        result = Verdict(others.most_common(1)[0][0])
    return replace(result, reason="\n".join(words), usage=add_usage(verdicts))


def _decide(valid: Sequence[Verdict], rule: Rule) -> Verdict:
    choices = [verdict.choice for verdict in valid if verdict.choice is not None]
    scores = [verdict.score for verdict in valid if verdict.score is not None]
    if scores:
        score = statistics.fmean(scores) if rule == "mean" else statistics.median(scores)
        return Verdict("ok", score=score)
    if rule == "mean":
        balance = sum(_VALUES[choice] - 0.5 for choice in choices)
        return Verdict("ok", choice="first" if balance > 0 else "second" if balance < 0 else "tie")
    votes = Counter(choices).most_common(1)
    won = bool(votes) and 2 * votes[0][1] > len(choices)
    return Verdict("ok", choice=votes[0][0] if won else "tie")


def _said(verdict: Verdict) -> str:
    said = verdict.choice if verdict.choice is not None else verdict.score
    return f"{verdict.status if said is None else said}. {verdict.reason}".rstrip(". ")
