from __future__ import annotations

from pathlib import Path

import pytest

from localdpo.core.errors import UserError, UserErrors
from localdpo.judging.base import Judge, Question
from localdpo.judging.panel import ConstitutionJudge
from localdpo.judging.prompts import prompt_identity
from localdpo.judging.rubric import SHIPPED_CONSTITUTIONS, SHIPPED_RUBRICS, load_constitution, load_rubric
from localdpo.records.verdicts import Verdict


@pytest.mark.parametrize("path", sorted(SHIPPED_RUBRICS.iterdir()), ids=lambda path: path.stem)
def test_shipped_rubrics_load(path: Path):
    rubric = load_rubric(path.stem)
    assert rubric.text
    assert rubric == load_rubric(str(path))


def test_the_hash_of_the_text_is_the_identity(tmp_path: Path):
    path = tmp_path / "mine.md"
    path.write_text("---\nmode: pairwise\n---\nWhich is better?\n")
    first = load_rubric(str(path))
    path.write_text("---\nmode: pairwise\n---\nWhich is worse?\n")
    second = load_rubric(str(path))
    assert first.text == "Which is better?"
    assert prompt_identity(first) != prompt_identity(second)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Which is better?", "expected a head"),
        ("---\nmode: both\n---\nx", "expected `mode: pairwise`"),
        ("---\nmode: score\nname: x\n---\nx", "nothing else"),
        ("---\nmode: [score\n---\nx", ":2 "),
        ("---\nmode: score\n---\n \n", "no text"),
    ],
)
def test_what_is_wrong_with_a_rubric_is_said(tmp_path: Path, text: str, said: str):
    path = tmp_path / "mine.md"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_rubric(str(path))
    assert said in str(error.value)
    assert str(path) in str(error.value)


def test_unknown_and_unreadable_rubrics(tmp_path: Path):
    with pytest.raises(UserError, match="helpful, quality, triage"):
        load_rubric("helpfull")
    (tmp_path / "x.md").write_bytes(b"---\nmode: score\n---\n\xff")
    with pytest.raises(UserError, match="UTF-8"):
        load_rubric(str(tmp_path / "x.md"))


def test_the_shipped_constitution_loads():
    for path in SHIPPED_CONSTITUTIONS.iterdir():
        constitution = load_constitution(path.stem)
        assert len({rubric.sha256 for rubric in constitution.rubrics("pairwise")}) == len(
            constitution.principles
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1", [":1 principles: missing", ":1 a: unknown key"]),
        ("principles: []", [":1 principles: "]),
        (
            "principles:\n - id: a\n   text: b\n - id: a\n   text: c",
            [":1 principles: each needs an id of its own; given twice: a"],
        ),
        (
            "principles:\n - {id: a, text: 3}\n - x",
            [":2 principles[0].text: expected a valid string, got 3", ":3 principles[1]: expected a mapping"],
        ),
        ("principles: &x [1]", ["anchors"]),
    ],
)
def test_what_is_wrong_with_a_constitution_is_said(tmp_path: Path, text: str, said: list[str]):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises((UserError, UserErrors)) as error:
        load_constitution(str(path))
    assert len(error.value.lines) == len(said)
    for line, part in zip(error.value.lines, said, strict=True):
        assert part in line


class UnderRubric(Judge):
    """Chooses by what the rubric's principle is."""

    def __init__(self, rubric):
        self.rubric = rubric
        self.name = "under"
        self.identity = {"rubric": rubric.sha256}

    def ask(self, question):
        choice = {"truthful": "first", "asked": "first", "brief": "second"}.get(self.rubric.principle, "tie")
        return Verdict("ok", choice=choice, principle=self.rubric.principle)

    def worst_case_usd(self, question):
        return 1.0


def test_one_principle_a_question_is_the_same_each_time_and_is_kept():
    judge = ConstitutionJudge(load_constitution("assistant"), "pairwise", "sample", UnderRubric)
    seen = set()
    for number in range(100):
        question = Question(str(number), "p", ("a", "b"))
        verdict = judge.ask(question)
        # The other order is asked about the same principle.
        assert judge.ask(Question(str(number), "p", ("b", "a"))).principle == verdict.principle
        seen.add(verdict.principle)
    assert seen == {principle.id for principle in load_constitution("assistant").principles}
    assert judge.worst_case_usd(question) == 1.0


def test_all_principles_are_averaged():
    judge = ConstitutionJudge(load_constitution("assistant"), "pairwise", "all", UnderRubric)
    question = Question("1", "p", ("a", "b"))
    verdict = judge.ask(question)
    assert verdict.choice == "first"
    assert verdict.principle == "truthful asked complete harmless honest brief"
    assert "brief: second" in verdict.reason
    assert judge.worst_case_usd(question) == 6.0
