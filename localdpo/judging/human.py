"""People as a judge: what they voted in the compare screen, looked up.

A vote counts for a question when it was about the same prompt and the very same two texts, in either order,
so asking in both orders gives one person's one vote twice and never a flip.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from localdpo.core.errors import UserError
from localdpo.judging.base import JudgeStopped, Question
from localdpo.records.verdicts import Choice, Verdict
from localdpo.records.votes import Votes, subject, text_id

_OTHER: Mapping[Choice, Choice] = {"first": "second", "second": "first", "tie": "tie"}


class HumanJudge:
    """Answers from a file of votes (records/votes.py).

    A question that nobody voted on is "refused": counted and shown, never scored. The identity holds a hash
    of the votes: a journal forgets what was said before they changed.

    Raises:
        UserError: no votes in the file, or a line that is none.
    """

    name = "human"
    identity: Mapping[str, str]
    concurrency = 1

    def __init__(self, path: Path) -> None:
        self._votes = Votes(path)
        votes = self._votes.all()
        if not votes:
            raise UserError(f"{path}: no votes yet; vote with v in `localdpo compare`")
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
        return Verdict("ok", choice=vote.choice if in_order else _OTHER[vote.choice], reason="vote")

    def worst_case_usd(self, question: Question) -> float:
        """0."""
        return 0.0
