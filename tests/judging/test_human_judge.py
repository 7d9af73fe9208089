"""The votes of people as verdicts."""

from __future__ import annotations

from pathlib import Path

import pytest

from localdpo.core.errors import UserError
from localdpo.judging.base import JudgeStopped, Question
from localdpo.judging.registry import JudgeRequest, make_judge
from localdpo.judging.run import JudgeSession
from localdpo.judging.without_model import HumanJudge
from localdpo.records.votes import Choice, Vote, Votes, text_id


def cast(path: Path, prompt: str, shown: tuple[str, str], choice: Choice) -> None:
    votes = Votes(path)
    votes.add(Vote(1.0, prompt, "dpo", "sft", choice, 0, (text_id(shown[0]), text_id(shown[1]))))


@pytest.fixture
def votes(tmp_path: Path) -> Path:
    path = tmp_path / "votes.jsonl"
    cast(path, "p", ("good", "bad"), "first")
    cast(path, "q", ("one", "two"), "tie")
    return path


def test_a_vote_answers_in_both_orders(votes: Path) -> None:
    judge = HumanJudge(votes)
    assert judge.ask(Question("p", "?", ("good", "bad"))).choice == "first"
    assert judge.ask(Question("p", "?", ("bad", "good"))).choice == "second"
    assert judge.ask(Question("q", "?", ("two", "one"))).choice == "tie"
    assert judge.worst_case_usd(Question("p", "?", ("good", "bad"))) == 0.0


@pytest.mark.parametrize(
    "question", [Question("p", "?", ("good", "worse")), Question("q", "?", ("good", "bad"))]
)
def test_what_nobody_voted_on_is_refused_and_never_invented(question: Question, votes: Path) -> None:
    judge = HumanJudge(votes)
    verdict = judge.ask(question)
    assert (verdict.status, verdict.choice) == ("refused", None)


def test_people_give_no_scores(votes: Path) -> None:
    with pytest.raises(JudgeStopped, match="give no scores"):
        HumanJudge(votes).ask(Question("p", "?", ("good",)))


def test_a_changed_mind_is_another_judge_to_the_journal(votes: Path) -> None:
    before = HumanJudge(votes).identity
    assert HumanJudge(votes).identity == before
    cast(votes, "p", ("bad", "good"), "first")
    judge = HumanJudge(votes)
    assert judge.identity != before
    assert judge.ask(Question("p", "?", ("bad", "good"))).choice == "first"


def test_without_votes_there_is_no_judge(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no votes yet"):
        HumanJudge(tmp_path / "votes.jsonl")


def test_the_registry_knows_it_and_pairs_have_no_flips(votes: Path) -> None:
    judge = make_judge("human", JudgeRequest(votes=votes))
    pairs = [
        Question("p", "?", ("bad", "good")),
        Question("q", "?", ("one", "two")),
        Question("r", "?", ("a", "b")),
    ]
    found = JudgeSession().ask_pairs(judge, pairs)
    assert [pair.choices for pair in found] == [("second", "first"), ("tie", "tie"), None]
