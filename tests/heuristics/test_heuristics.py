"""Each kind of heuristic: what it scores, what it leaves unscored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo import incidents
from localdpo.heuristics import HEURISTICS, STANDARD, Heuristic
from localdpo.heuristics.kinds import repeated_share, template_pattern
from localdpo.incidents import Facts, incident_facts

FACTS = Facts("login", "Tokyo", "timeouts", 9, 85, 1600)
SCHEMA = {"type": "object", "required": ["level"], "properties": {"level": {"enum": [1, 2, 3]}}}


def made(kind: str, **options: Any) -> Heuristic:
    return HEURISTICS[kind](name="it", **options)


def score(heuristic: Heuristic, answer: str, **facts: Any) -> float | None:
    return heuristic.score("a prompt", answer, facts)


def standard(name: str) -> Heuristic:
    return next(heuristic for heuristic in STANDARD if heuristic.name == name)


def test_names_of_the_standard_heuristics_are_unique() -> None:
    assert len({heuristic.name for heuristic in STANDARD}) == len(STANDARD)


@pytest.mark.parametrize(
    ("answer", "whole", "part"),
    [("Level: 3", 1, 1), (" Level: 3\n", 1, 1), ("see Level: 3.", 0, 1), ("", 0, 0)],
)
def test_regex_matches_the_whole_answer_or_a_part(answer: str, whole: float, part: float) -> None:
    assert score(made("regex", pattern="Level: [0-9]"), answer) == whole
    assert score(made("regex", pattern="Level: [0-9]", whole=False), answer) == part


def test_template_wants_every_hole_filled_on_its_line() -> None:
    heuristic = made("template", template="Level: {level}\nDo: {{{action}}}\n")
    assert score(heuristic, "Level: SEV1\nDo: {roll back}\n") == 1
    for other in ("Level: \nDo: {x}", "Level: 1\nDo: x", "Level: 1\n\nDo: {x}", "Level: 1 Do: {x}", ""):
        assert score(heuristic, other) == 0


@given(st.text(st.characters(exclude_characters="{}", codec="utf-8"), max_size=30))
def test_a_template_takes_its_text_literally(text: str) -> None:
    assert template_pattern(f"{text}{{x}}").fullmatch(f"{text}filled")


@pytest.mark.parametrize("template", ["no hole", "{open", "close}", "{two words}", "{}"])
def test_a_template_with_a_mistake_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"lone|no hole"):
        template_pattern(template)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ('{"level": 2}', 1),
        (' {"level": 2}\n', 1),
        ('{"level": 9}', 0),
        ("{}", 0),
        ("level 2", 0),
        ("[" * 99999, 0),
    ],
)
def test_schema_reads_the_whole_answer_as_json(answer: str, value: float, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(SCHEMA))
    assert score(made("schema", schema=SCHEMA), answer) == value
    assert score(made("schema", file=str(file)), answer) == value
    with pytest.raises(ValueError, match="`schema`"):
        made("schema", schema=SCHEMA, file=str(file))


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "`schema`"),
        ({"schema": {"type": "nonsense"}}, "not a JSON schema"),
        ({"schema": {"items": {"$ref": "http://example.org/x.json"}}}, "within the schema"),
        ({"file": "nowhere.json"}, "cannot read nowhere.json"),
    ],
)
def test_schema_mistakes(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        made("schema", **options)


def test_label_compares_with_the_column() -> None:
    heuristic = made("label", column="facts.level", pattern=r"Level: (\w+)")
    assert score(heuristic, "so Level: sev2!", facts={"level": "SEV2"}) == 1
    assert score(heuristic, "so Level: sev3!", facts={"level": "SEV2"}) == 0
    assert score(heuristic, "nothing", facts={"level": "SEV2"}) == 0
    assert score(heuristic, "Level: sev3", facts={"level": None}) is None
    assert score(heuristic, "Level: sev3", facts="text") is None
    assert score(made("label", column="n"), " 4 ", n=4) == 1
    with pytest.raises(ValueError, match="at most one group"):
        made("label", column="n", pattern="(a)(b)")


def test_length_counts_words_or_characters() -> None:
    assert score(made("length"), " two\n words ") == 2
    assert score(made("length", unit="characters"), " ab c ") == 4
    assert made("length").direction == "neutral"


def test_repetition_is_the_share_of_repeated_grams() -> None:
    assert repeated_share("a b c d e f", 4) == 0
    assert repeated_share("a b A b a B", 2) == pytest.approx(1 - 2 / 5)
    assert repeated_share("three words only", 4) is None
    assert score(made("repetition", n=1), "no no no no") == 0.75


@given(st.text(), st.integers(1, 6))
def test_repetition_is_a_share(text: str, n: int) -> None:
    value = repeated_share(text, n)
    assert value is None or 0 <= value < 1


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("I'm sorry, but I can’t help  with that.", 1),  # noqa: RUF001
        ("Sure! " + "word " * 60 + "I cannot help you more.", 0),
        ("Restart the server.", 0),
        ("", 0),
    ],
)
def test_refusal_looks_at_the_beginning(answer: str, value: float) -> None:
    assert score(standard("refusal"), answer) == value
    assert score(made("refusal", phrases=["RESTART the"]), "Restart the server.") == 1


def test_the_demos_checks_follow_the_rules_on_facts() -> None:
    right, row = incidents.gold_answer(FACTS), {"facts": FACTS.to_dict()}
    names = ("in the format", "severity right", "facts right", "all right")
    assert [score(standard(name), right, **row) for name in names] == [1, 1, 1, 1]
    wrong = right.replace("Tokyo", "Oslo")
    assert [score(standard(name), wrong, **row) for name in names] == [1, 1, 0, 0]
    free = right.replace("\n", " ")
    assert [score(standard(name), free, **row) for name in names] == [0, 1, 1, 0]


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"facts": None},
        {"facts": "text"},
        {"facts": {"service": "login"}},
        {"facts": {**FACTS.to_dict(), "percent": "9"}},
        {"facts": {**FACTS.to_dict(), "symptom": "boredom"}},
        {"facts": {**FACTS.to_dict(), "region": ["Tokyo"]}},
    ],
)
def test_rows_that_are_no_incident_are_not_scored(row: dict[str, Any]) -> None:
    assert incident_facts(row) is None
    assert score(standard("facts right"), "anything", **row) is None


@pytest.mark.parametrize("kind", list(HEURISTICS))
def test_every_kind_takes_a_direction_of_ones_own(kind: str) -> None:
    needed = {
        "regex": {"pattern": "x"},
        "schema": {"schema": {}},
        "template": {"template": "{x}"},
        "label": {"column": "x"},
    }
    assert made(kind, **needed.get(kind, {}), better="neutral").direction == "neutral"
