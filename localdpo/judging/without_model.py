"""The judges that need no model: the rules of the demo's task, constraints of rows, and the votes of people.

The rules know incident reports alone: their format, severity, action and facts. Rows of another kind are
refused. A vote in the compare screen counts for a question when it was about the same prompt and the very
same two texts, in either order, so asking in both orders returns one person's one vote twice and never a
flip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from localdpo.core.errors import UserError, UserErrors
from localdpo.core.names import command_line
from localdpo.core.text import counted
from localdpo.heuristics.constraints import COLUMN, constraints_met
from localdpo.incidents import IncidentVerdict, incident_facts
from localdpo.incidents import judge as judge_incident
from localdpo.judging.base import SWAPPED, Judge, JudgeStopped, Question
from localdpo.records.verdicts import Choice, Verdict
from localdpo.records.votes import Votes, subject, text_id

if TYPE_CHECKING:
    from localdpo.data.prompts import PromptRow

# Raise it when the rules say something else about the same answers: it is part of the journal's key.
RULES_VERSION: Final = "1"
BEST_TOTAL: Final = 3.5
RULES: Final = "rules"
# Likewise, when a constraint is checked in another way.
CONSTRAINTS_VERSION: Final = "1"
CONSTRAINTS: Final = "constraints"


def judges_all(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether all `rows` (the columns beside the prompts) are incidents, so that the rules can judge them."""
    return all(incident_facts(row) is not None for row in rows)


def refuse_others(spec: str, rows: Sequence[PromptRow]) -> None:
    """Raise UserError(s) if `spec` asks rules or constraints, alone or in a jury, about rows without them."""
    kind, _, members = spec.partition(":")
    named = {kind, *(name.strip() for name in members.split("+") if kind == "jury")}
    if RULES in named and (others := sum(incident_facts(row.facts) is None for row in rows)):
        raise UserError(
            f"--judge {spec}: rules checks the demo's incident reports (format, severity, action, facts), "
            f"which {others:,} of {counted(len(rows), 'prompt')} are not; "
            "name another judge: mlx:MODEL, anthropic or openai:URL#MODEL"
        )
    problems = []
    for row in rows if CONSTRAINTS in named else ():
        try:
            if constraints_met("", row.facts) is None:
                problems.append(f"{row.place} {COLUMN}: missing; --judge {CONSTRAINTS} checks nothing else")
        except ValueError as error:
            problems.append(f"{row.place} {error}")
    if problems:
        raise UserErrors([UserError(problem) for problem in problems])


class RulesJudge(Judge):
    """Prefers the answer that beats the other by the demo's rules; what neither beats is a tie.

    It looks at each answer alone, so both orders agree. One answer is scored by its total, 0 to BEST_TOTAL,
    spread over 1 to 5.
    """

    name = RULES
    identity: Mapping[str, str] = {"judge": "rules", "version": RULES_VERSION}

    def ask(self, question: Question) -> Verdict:
        """Always "ok". Raises JudgeStopped for a prompt without the facts of an incident."""
        facts = incident_facts(question.facts)
        if facts is None:
            raise JudgeStopped(
                f"prompt {question.id}: rules checks the demo's incident reports, and this row has no facts "
                "of one; name another judge with --judge"
            )
        if len(question.answers) == 1:
            verdict = judge_incident(question.answers[0], facts)
            return Verdict("ok", score=1 + 4 * verdict.total / BEST_TOTAL, reason=finding_text(verdict))
        one, other = (judge_incident(answer, facts) for answer in question.answers)
        if one.beats(other):
            return Verdict("ok", choice="first", reason=_comparison(one, other))
        if other.beats(one):
            return Verdict("ok", choice="second", reason=_comparison(one, other))
        return Verdict("ok", choice="tie", reason=f"neither beats the other: {_comparison(one, other)}")


class ConstraintsJudge(Judge):
    """Prefers the answer that keeps to more of its row's constraints; equally many are a tie.

    One answer is scored by the share of them, spread over 1 to 5.
    """

    name = CONSTRAINTS
    identity: Mapping[str, str] = {"judge": CONSTRAINTS, "version": CONSTRAINTS_VERSION}

    def ask(self, question: Question) -> Verdict:
        """Always "ok". Raises JudgeStopped for a prompt without constraints."""
        kinds = [entry["kind"] for entry in question.facts.get(COLUMN) or ()]
        if not kinds:
            raise JudgeStopped(f"prompt {question.id}: this row has no {COLUMN}; name another judge")
        shares, broken = [], []
        for answer in question.answers:
            met = constraints_met(answer, question.facts) or []
            shares.append(sum(met) / len(met))
            names = ", ".join(name for name, kept in zip(kinds, met, strict=True) if not kept)
            broken.append(f"breaks {names}" if names else "keeps to all")
        if len(shares) == 1:
            return Verdict("ok", score=1 + 4 * shares[0], reason=broken[0])
        choice: Choice = "tie" if shares[0] == shares[1] else "first" if shares[0] > shares[1] else "second"
        return Verdict("ok", choice=choice, reason=f"first {broken[0]}; second {broken[1]}")


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


class HumanJudge(Judge):
    """Answers from a file of votes (records/votes.py).

    A question that nobody voted on is "refused": counted and shown, never scored. The identity holds a hash
    of the votes: a journal forgets what was said before they changed.

    Raises UserError: the file has no votes, or a line that is not a vote.
    """

    name = "human"

    def __init__(self, path: Path) -> None:
        self._votes = Votes(path)
        votes = self._votes.all()
        if not votes:
            raise UserError(f"{path}: no votes yet; vote with v in `{command_line('compare')}`")
        text = json.dumps([asdict(vote) for vote in votes], sort_keys=True)
        self.identity = {"judge": "human", "votes": hashlib.sha256(text.encode()).hexdigest()}

    def ask(self, question: Question) -> Verdict:
        """The vote on two answers. Raises JudgeStopped for a single answer: people give no scores here."""
        if len(question.answers) != 2:
            raise JudgeStopped("human: people compare two answers and give no scores; ask for pairs")
        one, other = (text_id(answer) for answer in question.answers)
        vote = self._votes.of(subject(question.id, one, other))
        if vote is None:
            return Verdict("refused", reason="nobody voted on these two answers")
        in_order = vote.answers[0] == text_id(question.answers[0])
        return Verdict("ok", choice=vote.choice if in_order else SWAPPED[vote.choice], reason="vote")
