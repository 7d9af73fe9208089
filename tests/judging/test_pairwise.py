from __future__ import annotations

import pytest
from fake_judges import FakeJudge, always, longer, pairs

from localdpo.evals.figures import tally
from localdpo.judging.base import PairVerdict, Question
from localdpo.judging.run import Journal, JudgeSession
from localdpo.records.verdicts import Verdict


def ok(choice: str) -> Verdict:
    return Verdict("ok", choice=choice)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "second", "score", "flipped"),
    [
        ("first", "second", 1.0, False),
        ("second", "first", 0.0, False),
        ("tie", "tie", 0.5, False),
        ("first", "first", 0.5, True),
        ("second", "second", 0.5, True),
        ("first", "tie", 0.5, True),
        ("tie", "first", 0.5, True),
    ],
)
def test_a_win_needs_both_orders(first: str, second: str, score: float, flipped: bool):
    verdict = PairVerdict("1", ok(first), ok(second))
    assert (verdict.score, verdict.flipped, verdict.valid) == (score, flipped, True)


@pytest.mark.parametrize("status", ["refused", "truncated", "unparseable", "unanswered"])
def test_without_two_verdicts_there_is_no_score(status):
    for verdict in (
        PairVerdict("1", ok("first"), Verdict(status)),
        PairVerdict("1", Verdict(status), ok("first")),
    ):
        assert (verdict.score, verdict.flipped, verdict.valid, verdict.choices) == (None, False, False, None)
        assert tally([verdict])["valid"] == 0
        assert tally([verdict])["statuses"] == {status: 1}


def test_always_the_same_position_is_all_flips_and_no_consistency():
    result = tally(JudgeSession().ask_pairs(FakeJudge(always("first")), pairs(37)))
    assert result["consistency"] == 0.0
    assert result["flips"] == result["ties"] == result["valid"] == 37
    result = tally(JudgeSession().ask_pairs(FakeJudge(always("second")), pairs(37)))
    assert result["flips"] == result["ties"] == result["valid"] == 37


def test_always_a_tie_is_consistent():
    result = tally(JudgeSession().ask_pairs(FakeJudge(always("tie")), pairs(37)))
    assert (result["ties"], result["flips"], result["consistency"]) == (37, 0, 1.0)


def test_swapped_names_give_one_minus_the_rate_and_ask_nothing_new(tmp_path):
    judge = FakeJudge(longer)
    forth = pairs(20)
    back = [Question(pair.id, pair.prompt, pair.answers[::-1]) for pair in forth]
    with Journal(tmp_path / "verdicts.jsonl") as journal:
        one = tally(JudgeSession(journal).ask_pairs(judge, forth))
        asked = len(judge.asked)
        two = tally(JudgeSession(journal).ask_pairs(judge, back))
    assert (one["wins"], one["ties"], one["losses"]) == (two["losses"], two["ties"], two["wins"])
    assert one["wins"] > 0 < one["losses"]
    # The same two questions, the other way round.
    assert len(judge.asked) == asked


def test_equal_answers_are_a_tie_that_nobody_is_asked_about():
    judge = FakeJudge(always("first"))
    verdicts = JudgeSession().ask_pairs(
        judge, [Question("1", "p", ("same", "same")), Question("2", "p", ("a", "b"))]
    )
    assert [verdict.identical for verdict in verdicts] == [True, False]
    assert len(judge.asked) == 2
    result = tally(verdicts)
    assert (result["identical"], result["ties"], result["consistency"]) == (1, 2, 0.0)


def test_nothing_to_judge_is_no_crash():
    result = tally([])
    assert (result["valid"], result["consistency"]) == (0, None)
