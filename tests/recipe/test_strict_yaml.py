"""The YAML subset: values, lines, and what it refuses."""

from __future__ import annotations

import math

import pytest

from localdpo.recipe.strict_yaml import MAX_DEPTH, MAX_NODES, read_yaml, scalar


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("5E-7", 5e-7),
        ("1.", 1.0),
        (".5", 0.5),
        ("-3", -3),
        ("+4", 4),
        ("0", 0),
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("False", False),
        ("9" * 30, 1e30),
    ],
)
def test_plain_scalars_have_yaml_1_2_types(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


@pytest.mark.parametrize(
    "text",
    ["no", "off", "yes", "on", "y", "010", "0x10", "1_000", "12:30", "1e", "e5", ".", "2026-01-01", "nan"],
)
def test_what_yaml_1_1_would_convert_stays_text(text: str) -> None:
    assert scalar(text) == text


def test_infinities_and_nan_are_read_as_such_so_that_they_can_be_refused() -> None:
    assert scalar(".inf") == math.inf
    assert scalar("-.inf") == -math.inf
    assert scalar("1e999") == math.inf
    assert math.isnan(scalar(".nan"))  # type: ignore[arg-type]


def test_lines_are_those_of_the_keys_and_items() -> None:
    document = read_yaml("a: 1\n\nb:\n  c: >\n    long\n    text\n  d: [1,\n    2]\n")
    assert document.problems == []
    assert document.value == {"a": 1, "b": {"c": "long text\n", "d": [1, 2]}}
    assert document.lines == {
        ("a",): 1,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "d"): 7,
        ("b", "d", 0): 7,
        ("b", "d", 1): 8,
    }


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb:\n\tc: 2\n", 3, "a tab where YAML expects spaces; replace it with spaces"),
        ("a: 1\n--- \nb: 2\n", 2, "a second document starts here; a recipe is one document"),
        ("a: b: c\n", 1, "not valid YAML: mapping values are not allowed here"),
        ("a: 1\nb: [1,\n", 3, "not valid YAML: while parsing a flow node"),
        ("a: 1\nb: \x07\n", 2, "the character U+0007 is not allowed"),
        ('a: "\\UFFFFFFFF"\n', 1, "not valid YAML: too large a number"),
        ("%YAML 9.9\n---\na: 1\n", 1, "not valid YAML: found incompatible YAML document"),
        ("[" * (MAX_DEPTH + 2), 1, f"nested more than {MAX_DEPTH} deep"),
        ("- x\n" * (MAX_NODES + 1), MAX_NODES, f"more than {MAX_NODES} values"),
    ],
)
def test_reading_ends_at_what_is_not_this_yaml(text: str, line: int, message: str) -> None:
    document = read_yaml(text)
    assert document.value is None
    assert [problem.line for problem in document.problems] == [line]
    assert document.problems[0].message.startswith(message)


def test_tags_anchors_aliases_and_odd_keys_are_refused_one_by_one() -> None:
    document = read_yaml(
        "a: !!python/object/apply:os.system [ls]\nb: &x 1\nc: *x\n? [d]\n: 1\n!!str e: 2\nf: !t {}\n"
    )
    assert [(problem.line, problem.path) for problem in document.problems] == [
        (1, ("a",)),
        (2, ("b",)),
        (3, ("c",)),
        (4, ()),
        (6, ()),
        (7, ("f",)),
    ]


def test_an_alias_bomb_is_not_unfolded() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    found = read_yaml(bomb).problems
    assert len(found) == 9 + 8 * 9
    assert all("aliases are not allowed" in problem.message for problem in found)


def test_a_key_given_twice_names_the_first_line_and_keeps_its_value() -> None:
    document = read_yaml("a: 1\nb: 2\na: {c: 3}\n")
    assert document.value == {"a": 1, "b": 2}
    assert [(problem.line, problem.message) for problem in document.problems] == [
        (3, "given twice, first on line 1; remove one")
    ]
