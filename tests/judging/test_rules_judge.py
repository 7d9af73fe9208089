"""The demo's judge follows the rules on facts, whatever the order."""

from __future__ import annotations

import random

import pytest

from localdpo import incidents
from localdpo.judging.base import JudgeStopped, Question
from localdpo.judging.run import JudgeSession, preview
from localdpo.judging.without_model import RulesJudge
from localdpo.records.verdicts import Verdict

FACTS, _ = next(incidents.draw_incidents(random.Random(1)))
RIGHT = incidents.gold_answer(FACTS)
ROW = {"facts": FACTS.to_dict()}
# Each is worse than the one before; the last two are worse in different ways.
LEAVES_OUT = RIGHT.replace(FACTS.region, "the region")
NO_FORMAT = RIGHT.replace("\n", " ")


def asked(*answers: str, **facts: object) -> Verdict:
    return RulesJudge().ask(Question("7", "a report", answers, facts or ROW))


@pytest.mark.parametrize(
    ("better", "worse"), [(RIGHT, LEAVES_OUT), (RIGHT, NO_FORMAT), (LEAVES_OUT, NO_FORMAT)]
)
def test_the_better_answer_wins_in_both_orders(better: str, worse: str) -> None:
    assert asked(better, worse).choice == "first"
    assert asked(worse, better).choice == "second"
    [found] = JudgeSession().ask_pairs(RulesJudge(), [Question("7", "a report", (better, worse), ROW)])
    assert found.score == 1.0
    assert not found.flipped


def test_what_neither_beats_is_a_tie() -> None:
    wrong_action = RIGHT.replace(incidents.next_action(FACTS), "wait")
    other = asked(wrong_action, LEAVES_OUT)
    assert other.choice == "tie"
    assert other.reason == "neither beats the other: first wrong action; second leaves out region"
    assert asked(NO_FORMAT, "nothing").choice == "tie"


def test_reasons_say_what_is_wrong() -> None:
    assert asked(RIGHT, NO_FORMAT).reason.startswith("first all right; second not in the format")


def test_one_answer_gets_its_total_as_a_score() -> None:
    assert asked(RIGHT).score == 5.0
    assert asked(NO_FORMAT).score == 1.0
    score = asked(LEAVES_OUT).score
    assert score is not None
    assert 4 < score < 5


@pytest.mark.parametrize("facts", [{"facts": {"other": 1}}, {"category": "x"}])
def test_rows_of_another_task_stop_it_with_a_hint(facts: dict[str, object]) -> None:
    with pytest.raises(JudgeStopped, match=r"prompt 7: .* no facts of one; name another judge"):
        asked(RIGHT, NO_FORMAT, **facts)


def test_it_costs_nothing() -> None:
    assert preview(RulesJudge(), [Question("7", "a report", (RIGHT, NO_FORMAT), ROW)]).worst_usd == 0
