"""The demo's judge: the rules of its task, applied to the facts beside each prompt.

It knows incident reports alone: their format, severity, action and facts. Rows of another kind are refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from localdpo.core.errors import UserError
from localdpo.incidents.rules import IncidentVerdict, incident_facts, judge_once
from localdpo.incidents.world import Facts
from localdpo.judging.base import JudgeStopped, Question
from localdpo.records.verdicts import Verdict

# Raise it when the rules say something else about the same answers: it is part of the journal's key.
RULES_VERSION: Final = "1"
BEST_TOTAL: Final = 3.5

NAME: Final = "rules"


def judges_all(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether all `rows` (the columns beside the prompts) are incidents, so that the rules can judge them."""
    return all(incident_facts(row) is not None for row in rows)


def refuse_others(spec: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError if `spec` asks the rules, alone or in a jury, about rows that are no incidents."""
    kind, _, members = spec.partition(":")
    if NAME not in (kind, *(name.strip() for name in members.split("+") if kind == "jury")):
        return
    others = sum(incident_facts(row) is None for row in rows)
    if others:
        raise UserError(
            f"--judge {spec}: rules checks the demo's incident reports (format, severity, action, facts), "
            f"and {others:,} of {len(rows):,} prompts are none; name another judge: mlx:MODEL, anthropic or "
            "openai:URL#MODEL"
        )


class RulesJudge:
    """Prefers the answer that beats the other by the demo's rules; what neither beats is a tie.

    It looks at each answer alone, so both orders agree. One answer is scored by its total, 0 to BEST_TOTAL,
    spread over 1 to 5.
    """

    name = NAME
    identity: Mapping[str, str]
    concurrency = 1

    def __init__(self) -> None:
        self.identity = {"judge": "rules", "version": RULES_VERSION}

    def ask(self, question: Question) -> Verdict:
        """Always "ok". Raises JudgeStopped for a prompt without the facts of an incident."""
        facts = incident_facts(question.facts)
        if facts is None:
            raise JudgeStopped(
                f"prompt {question.id}: rules checks the demo's incident reports, and this row has no facts "
                "of one; name another judge with --judge"
            )
        if len(question.answers) == 1:
            return _scored(question.answers[0], facts)
        one, other = (judge_once(answer, facts) for answer in question.answers)
        if one.beats(other):
            return Verdict("ok", choice="first", reason=_comparison(one, other))
        if other.beats(one):
            return Verdict("ok", choice="second", reason=_comparison(one, other))
        return Verdict("ok", choice="tie", reason=f"neither beats the other: {_comparison(one, other)}")

    def worst_case_usd(self, question: Question) -> float:
        """0."""
        return 0.0


def _scored(answer: str, facts: Facts) -> Verdict:
    finding = judge_once(answer, facts)
    return Verdict("ok", score=1 + 4 * finding.total / BEST_TOTAL, reason=finding_text(finding))


def _comparison(one: IncidentVerdict, other: IncidentVerdict) -> str:
    return f"first {finding_text(one)}; second {finding_text(other)}"


def finding_text(finding: IncidentVerdict) -> str:
    """What the rules object to in one answer, in words."""
    faults = [] if finding.conforms else ["not in the format"]
    faults += [] if finding.severity else ["wrong severity"]
    faults += [] if finding.action else ["wrong action"]
    faults += [f"leaves out {name}" for name in finding.missing]
    faults += [f"invents {what}" for what in finding.invented]
    return ", ".join(faults) or "all right"
