"""Each kind of constraint on right and wrong answers, and what is said about rows that cannot be read."""

from __future__ import annotations

import json
import string
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localdpo.core.errors import UserErrors
from localdpo.data.prompts import PromptRow
from localdpo.heuristics import HEURISTICS
from localdpo.heuristics.checks import check_rows
from localdpo.heuristics.constraints import CONSTRAINTS, constraints_met

# kind -> parameters, answers that keep to it, answers that break it.
CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "words": ({"min": 2, "max": 3}, ["two words", "now three words"], ["one", "these are four words", ""]),
    "sentences": (
        {"n": 2},
        ["One. Two.", "Is it 3.5 m? Yes!", 'He said "no." Then he left', "One...\n\nTwo."],
        ["One.", "One. Two. Three.", ""],
    ),
    "paragraphs": ({"n": 2}, ["a\n\nb", "a\nb\n \nc"], ["a\nb", "a\n\nb\n\nc", ""]),
    "lines": ({"n": 2}, ["a\nb", "a\n\nb"], ["a", "a\nb\nc", ""]),
    "longest_word": ({"n": 4}, ["Some tea, 10000 cups", "it's fine"], ["Every cup", "12", ""]),
    "contains": ({"word": "tea"}, ["Tea!", "a tea-pot"], ["steam", "teas", ""]),
    "times": ({"word": "tea", "n": 2}, ["tea, Tea."], ["tea", "tea tea tea", "tea teas"]),
    "excludes": ({"word": "tea"}, ["teas and steam"], ["TEA", "green tea.", ""]),
    "without_letter": ({"letter": "e"}, ["a big dog"], ["Every", "tea", ""]),
    "lower": ({}, ["tea, 2 cups", "über"], ["Tea", "123", ""]),
    "upper": ({}, ["TEA, 2 CUPS"], ["TEa", "123", ""]),
    "no_commas": ({}, ["one and two"], ["one, two", ""]),
    "question": ({}, ["Tea?", 'She asked: "Tea?"', "**Tea?**"], ["Tea? Yes.", ""]),
    "exclamations": ({"n": 2}, ["Tea! Now!", "!!!"], ["Tea!", ""]),
    "quoted": ({}, ['"Tea is good."', "“Tea.”"], ['"Tea" is good', '"', '""', "tea", ""]),
    "starts_with": ({"text": "In short"}, ["In short, tea", "IN SHORT tea"], ["Tea, in short", ""]),
    "ends_with": (
        {"text": "The end"},
        ["Tea. The end", "Tea. the end.", 'Tea. "The end."'],
        ["The end of tea", ""],
    ),
    "postscript": ({}, ["Tea.\nP.S. Milk.", "a\n\nP. S.: b"], ["P.S. Milk", "Tea.\nP.S.", "P.S. a\nb", ""]),
    "title": ({}, ["<<Tea>>\nGood.", "A << green tea >>"], ["<Tea>", "<<>>", "<<Tea\n>>", ""]),
    "bullets": ({"n": 2}, ["- a\n- b", "Tea:\n* a\n• b"], ["- a", "-a\n-b", "- a\n- b\n- c", ""]),
    "numbered": ({"n": 2}, ["1. a\n2. b", "Tea:\n1) a\n\n2) b"], ["1. a", "2. a\n1. b", "1. a\n1. b", ""]),
    "bold": ({"n": 2}, ["**a** and **b c**"], ["**a**", "*a* *b*", "****", ""]),
    "placeholders": ({"n": 2}, ["Dear [name], [day]"], ["[name]", "[] []", "", "(name) (day)"]),
    "parts": ({"n": 2}, ["a\n***\nb", "a\n\n***\n\nb"], ["a *** b", "a\n***\n", "a\n***\nb\n***\nc", ""]),
    "json_keys": (
        {"keys": ["name", "use"]},
        ['{"name": 1, "use": null, "more": []}', '```json\n{"name": "a", "use": "b"}\n```'],
        ['{"name": 1}', '[{"name": 1, "use": 2}]', "name use", 'Here: {"name": 1, "use": 2}', "[" * 9999, ""],
    ),
}  # fmt: skip


def met(kind: str, answer: str, **parameters: Any) -> bool:
    found = constraints_met(answer, {"constraints": [{"kind": kind, **parameters}]})
    assert found is not None
    return found[0]


def test_every_kind_has_cases_and_wordings_that_name_all_its_parameters() -> None:
    assert set(CASES) == set(CONSTRAINTS)
    assert len(CONSTRAINTS) == 25
    for kind, (parameters, _, _) in CASES.items():
        assert len(CONSTRAINTS[kind].wordings) > 1
        for wording in CONSTRAINTS[kind].wordings:
            named = {name for _, name, _, _ in string.Formatter().parse(wording) if name}
            assert named == set(parameters), wording


@pytest.mark.parametrize("kind", CASES)
def test_right_answers_keep_to_it_and_wrong_ones_break_it(kind: str) -> None:
    parameters, right, wrong = CASES[kind]
    for answer in right:
        assert met(kind, answer, **parameters), answer
        assert met(kind, f"\n {answer} \n", **parameters), answer
    for answer in wrong:
        assert not met(kind, answer, **parameters), answer


@given(st.lists(st.text("abc", min_size=1), min_size=1, max_size=9), st.integers(1, 9))
def test_counts_are_those_of_what_was_joined(parts: list[str], n: int) -> None:
    is_n = len(parts) == n
    assert met("words", " ".join(parts), min=n, max=n) == is_n
    assert met("words", " ".join(parts), min=n) == (len(parts) >= n)
    assert met("sentences", ". ".join(parts), n=n) == is_n
    assert met("lines", "\n".join(parts), n=n) == is_n
    assert met("paragraphs", "\n\n".join(parts), n=n) == is_n
    assert met("parts", "\n***\n".join(parts), n=n) == is_n
    assert met("bullets", "\n".join(f"- {part}" for part in parts), n=n) == is_n
    assert met("numbered", "\n".join(f"{i + 1}. {part}" for i, part in enumerate(parts)), n=n) == is_n
    assert met("times", " ".join(parts), word="a", n=n) == (parts.count("a") == n)
    assert met("longest_word", " ".join(parts), n=n) == (max(map(len, parts)) <= n)


@settings(max_examples=20)
@given(st.text())
def test_any_text_is_answered_by_every_kind(answer: str) -> None:
    row = {"constraints": [{"kind": kind, **parameters} for kind, (parameters, _, _) in CASES.items()]}
    found = constraints_met(answer, row)
    assert found is not None
    assert len(found) == len(CASES)
    assert json.loads(json.dumps(found)) == found


def test_the_heuristic_scores_all_or_the_share_and_no_other_rows() -> None:
    every = HEURISTICS["constraints"](name="all")
    share = HEURISTICS["constraints"](name="share", measure="share")
    row = {"constraints": [{"kind": "lower"}, {"kind": "no_commas", "n": None}]}
    answers = ("tea", "tea, milk", "Tea, milk")
    assert [every.score("", answer, row) for answer in answers] == [1, 0, 0]
    assert [share.score("", answer, row) for answer in answers] == [1, 0.5, 0]
    assert every.score("", "tea", {}) is None


@pytest.mark.parametrize(
    ("constraints", "message"),
    [
        ("lower", "constraints: expected a list of constraints, each with a kind"),
        ([], "constraints: expected a list"),
        (["lower"], "constraints[0]: expected an object with a kind (words, sentences, "),
        ([{"kind": "lower"}, {"kind": "rhyme"}], "constraints[1]: expected an object with a kind (words"),
        ([{"kind": "words", "max": 2}], "constraints[0].min: missing"),
        ([{"kind": "sentences", "n": "2"}], "constraints[0].n: expected a valid integer, got '2'"),
        ([{"kind": "sentences", "n": 0}], "constraints[0].n: expected greater than or equal to 1, got 0"),
        ([{"kind": "lower", "n": 2}], "constraints[0].n: unknown key"),
        ([{"kind": "json_keys", "keys": []}], "constraints[0].keys: "),
        ([{"kind": "contains", "word": "two words"}], "constraints[0].word: "),
    ],
)
def test_a_row_that_cannot_be_read_is_an_error_with_its_line(constraints: Any, message: str) -> None:
    rows = [
        PromptRow("a", place="p:1"),
        PromptRow("b", {"constraints": constraints}, place="p:2"),
    ]
    with pytest.raises(UserErrors) as caught:
        check_rows([HEURISTICS["constraints"](name=name) for name in ("one", "two")], rows)
    assert len(caught.value.lines) == 1
    assert caught.value.lines[0].startswith(f"p:2 {message}")
