"""A file of checks, and what is said about one with mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from localdpo.core.errors import LocalDPOError, UserError
from localdpo.heuristics.checks import load_checks, with_standard


def written(folder: Path, text: str) -> Path:
    file = folder / "checks.yaml"
    file.write_text(text)
    return file


def lines(folder: Path, text: str) -> list[str]:
    file = written(folder, text)
    with pytest.raises(LocalDPOError) as caught:
        load_checks(file)
    assert all(line.startswith(f"{file}:") for line in caught.value.lines)
    return [line.removeprefix(f"{file}:") for line in caught.value.lines]


def test_a_file_names_kinds_and_their_options(tmp_path: Path) -> None:
    found = load_checks(
        written(
            tmp_path,
            """
checks:
  - kind: regex
    name: has a number
    pattern: '[0-9]+'
    whole: false
  - {kind: label, column: answer, pattern: 'Answer: (\\w+)'}
  - {kind: length, unit: characters, better: lower}
""",
        )
    )
    assert [(h.name, h.direction) for h in found] == [
        ("has a number", "higher"),
        ("label", "higher"),
        ("length", "lower"),
    ]
    assert [h.score("", "Answer: b2", {"answer": "B2"}) for h in found] == [1, 1, 10]


def test_every_mistake_is_told_with_its_line_and_key(tmp_path: Path) -> None:
    text = """checks:
  - kind: length
    name: same
  - kind: regex
    pattern: '('
  - kind: sentiment
  - kind: label
  - kind: length
    unit: miles
  - kind: repetition
    n: 0
  - kind: refusal
    name: same
  - kind: template
    template: '{x}'
    colour: red
  - kind: refusal
    phrases: [no, 3]
  - nothing
other: 1
"""
    found = lines(tmp_path, text)
    starts = [
        "20 other: unknown key",
        "5 checks[1].pattern: not a regular expression",
        "6 checks[2].kind: no such kind; the kinds are regex, schema",
        "7 checks[3].column: missing",
        "9 checks[4].unit: expected 'words' or 'characters', got 'miles'",
        "11 checks[5].n: expected greater than or equal to 1, got 0",
        "13 checks[6].name: there is a check named 'same' already",
        "16 checks[7].colour: unknown key",
        "18 checks[8].phrases[1]: expected text, got 3",
        "19 checks[9]: expected a mapping",
    ]
    assert len(found) == len(starts)
    for line, start in zip(found, starts, strict=True):
        assert line.startswith(start), line


@pytest.mark.parametrize("text", ["", "checks:", "checks: []", "checks: {a: 1}", "- kind: regex"])
def test_a_file_without_checks_says_what_it_wants(text: str, tmp_path: Path) -> None:
    assert lines(tmp_path, text)[0].startswith("1 checks: expected a list of checks, each with a kind: regex")


def test_broken_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    assert lines(tmp_path, "checks:\n  - kind: [\n")[0].startswith("3 not valid YAML")


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_checks(tmp_path / "nothing.yaml")


def test_a_check_takes_the_place_of_the_standard_one_of_its_name(tmp_path: Path) -> None:
    own = load_checks(written(tmp_path, "checks: [{kind: repetition, n: 2}, {kind: regex, pattern: x}]"))
    names = [heuristic.name for heuristic in with_standard(own)]
    assert names[-2:] == ["repetition", "regex"]
    assert names.count("repetition") == 1
    assert with_standard(own)[-2] is own[0]
