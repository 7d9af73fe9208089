"""The judge of constraints counts what an answer keeps to, and refuses rows without any."""

from __future__ import annotations

import pytest

from localdpo.core.errors import UserErrors
from localdpo.data.prompts import PromptRow
from localdpo.judging.base import JudgeStopped, Question
from localdpo.judging.registry import JudgeRequest, judge_spec, make_judge, wants_scores
from localdpo.judging.run import JudgeSession
from localdpo.judging.without_model import ConstraintsJudge
from localdpo.records.verdicts import Verdict

ROW = {"constraints": [{"kind": "lower"}, {"kind": "no_commas"}]}


def asked(*answers: str) -> Verdict:
    return ConstraintsJudge().ask(Question("7", "about tea", answers, ROW))


def test_the_answer_that_keeps_to_more_wins_in_both_orders() -> None:
    [found] = JudgeSession().ask_pairs(
        make_judge("constraints"), [Question("7", "about tea", ("tea", "Tea"), ROW)]
    )
    assert found.score == 1.0
    assert not found.flipped
    assert asked("Tea", "tea").reason == "first breaks lower; second keeps to all"
    assert asked("Tea", "tea, milk").choice == "tie"


def test_one_answer_is_scored_by_the_share_it_keeps_to() -> None:
    assert [asked(answer).score for answer in ("Tea, milk", "tea, milk", "tea")] == [1, 3, 5]
    assert wants_scores(JudgeRequest(), "constraints")


def test_rows_without_constraints_are_refused_with_their_lines() -> None:
    rows = [PromptRow("a", ROW, place="p:1"), PromptRow("b", place="p:2")]
    wrong = PromptRow("c", {"constraints": [{"kind": "lower", "n": 1}]}, place="p:3")
    with pytest.raises(UserErrors) as caught:
        judge_spec(JudgeRequest(judge="jury:constraints+mlx:m"), [*rows, wrong])
    assert list(caught.value.lines) == [
        "p:2 constraints: missing; --judge constraints checks nothing else",
        "p:3 constraints[0].n: unknown key",
    ]
    assert judge_spec(JudgeRequest(judge="constraints"), rows[:1]) == "constraints"
    with pytest.raises(JudgeStopped, match="no constraints"):
        ConstraintsJudge().ask(Question("7", "about tea", ("tea",)))
