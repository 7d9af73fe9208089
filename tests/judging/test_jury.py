from __future__ import annotations

import pytest
from fake_judges import FakeJudge, always, run_questions

from localdpo.judging.base import Question
from localdpo.judging.panel import Jury
from localdpo.judging.run import Journal, preview
from localdpo.records.verdicts import Usage, Verdict

QUESTION = Question("1", "p", ("a", "b"))


def said(*verdicts: object) -> list[Verdict]:
    """Verdicts from choices, scores and statuses."""
    made = {
        str: lambda word: Verdict("ok", choice=word) if word in ("first", "second", "tie") else Verdict(word),
        float: lambda score: Verdict("ok", score=score),
    }
    return [made[type(one)](one) for one in verdicts]


def jury(count: int, rule: str = "majority") -> Jury:
    return Jury([FakeJudge(always("tie"), f"judge {number}") for number in range(count)], rule)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("votes", "majority", "mean"),
    [
        (("first", "first", "second"), "first", "first"),
        (("first", "second"), "tie", "tie"),
        (("first", "tie"), "tie", "first"),
        (("first", "tie", "tie"), "tie", "first"),
        (("first", "second", "tie"), "tie", "tie"),
        (("second", "second", "refused"), "second", "second"),
        (("second", "tie", "unparseable"), "tie", "second"),
    ],
)
def test_votes_on_pairs(votes, majority, mean):
    assert jury(len(votes)).combine(said(*votes)).choice == majority
    assert jury(len(votes), "mean").combine(said(*votes)).choice == mean


def test_scores():
    assert jury(3).combine(said(1.0, 4.0, 5.0)).score == 4.0
    assert jury(3, "mean").combine(said(1.0, 4.0, 5.0)).score == pytest.approx(10 / 3)


def test_without_more_than_half_there_is_no_verdict_and_the_statuses_are_kept():
    verdict = jury(3).combine(said("first", "refused", "refused"))
    assert (verdict.status, verdict.choice) == ("refused", None)
    assert verdict.reason == "judge 0: first\njudge 1: refused\njudge 2: refused"
    assert jury(2).combine(said("first", "truncated")).status == "truncated"


def test_swapped_votes_give_the_other_answer():
    other = {"first": "second", "second": "first", "tie": "tie"}
    for rule in ("majority", "mean"):
        for votes in [(a, b, c) for a in other for b in other for c in other]:
            choice = jury(3, rule).combine(said(*votes)).choice
            swapped = jury(3, rule).combine(said(*(other[vote] for vote in votes))).choice
            assert swapped == other[choice]


def test_members_are_asked_and_kept_one_by_one(tmp_path):
    first = FakeJudge(
        lambda question: Verdict("ok", choice="first", usage=Usage(1, 1, 0, 0.5)), "one", 4, 0.6
    )
    second = FakeJudge(lambda question: Verdict("refused", usage=Usage(2, 1, 0, 0.25)), "two", 1, 0.3)
    both = Jury([first, second])
    with Journal(tmp_path / "verdicts.jsonl") as journal:
        assert preview(both, [QUESTION], journal) == (2, 0, pytest.approx(0.9))
        verdict = run_questions(both, [QUESTION], journal)[0]
        assert verdict.status == "refused"
        assert verdict.usage == Usage(3, 2, 0, 0.75)
        assert preview(both, [QUESTION], journal) == (1, 1, pytest.approx(0.3))
        run_questions(both, [QUESTION], journal)
    assert (len(first.asked), len(second.asked)) == (1, 2)


def test_one_judge_is_no_jury():
    with pytest.raises(ValueError, match="at least two"):
        jury(1)
