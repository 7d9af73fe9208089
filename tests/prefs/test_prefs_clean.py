"""`prefs clean` writes what is not flagged, in its order, and counts every reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from clean_pairs import clean_rows, write

from localdpo.core.errors import UserError
from localdpo.prefs.check import check
from localdpo.prefs.checks.base import CheckSettings
from localdpo.prefs.rewrite import clean


def rows_in(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def dirty(tmp_path: Path) -> tuple[str, list[Any]]:
    """A file with defects at rows 2 to 6, and its rows; extra columns everywhere."""
    rows: list[Any] = [{**row, "id": i} for i, row in enumerate(clean_rows(20))]
    rows[2]["rejected"] = rows[2]["chosen"]
    rows[3] = {**rows[0], "id": 3}
    rows[4]["chosen"] = ""
    rows[5] = "{broken"
    rows[6]["chosen"] += "<|im_end|>"
    return write(tmp_path / "dirty.jsonl", rows), rows


def test_flagged_rows_are_left_out_and_counted(dirty: tuple[str, list[Any]], tmp_path: Path) -> None:
    path, rows = dirty
    done = clean(path, tmp_path / "clean.jsonl")
    assert rows_in(tmp_path / "clean.jsonl") == [row for i, row in enumerate(rows) if i not in (2, 3, 4, 5)]
    assert done.reasons == {
        "unreadable-rows": 1,
        "empty-answers": 1,
        "identical-answers": 1,
        "duplicate-pairs": 1,
    }
    assert (done.read, done.kept, done.dropped) == (20, 16, 4)
    again = check(str(tmp_path / "clean.jsonl"))
    assert [result.check.name for result in again.results] == ["template-markers"]


def test_names_say_what_goes(dirty: tuple[str, list[Any]], tmp_path: Path) -> None:
    path, _ = dirty
    done = clean(path, tmp_path / "clean.jsonl", drop=["template-markers"])
    # A row that is no JSON cannot be written again, whatever is asked for.
    assert done.reasons == {"template-markers": 1, "unreadable-rows": 1}
    assert [row["id"] for row in rows_in(tmp_path / "clean.jsonl")] == [
        *range(5),
        *range(7, 20),
    ]


def test_overlap_goes_when_there_is_what_to_compare_with(tmp_path: Path) -> None:
    rows = clean_rows(5)
    valid = write(tmp_path / "valid.jsonl", [{"prompt": rows[1]["prompt"]}])
    path = write(tmp_path / "pairs.jsonl", rows)
    done = clean(path, tmp_path / "clean.jsonl", settings=CheckSettings(against=[valid]))
    assert done.reasons == {"overlap-exact": 1}
    assert done.kept == 4


def test_both_rows_of_a_flagged_pair_go(tmp_path: Path) -> None:
    rows = []
    for row in clean_rows(3):
        rows += [{"prompt": row["prompt"], "completion": row["chosen"], "label": True}]
        rows += [{"prompt": row["prompt"], "completion": row["rejected"], "label": False}]
    rows[3]["completion"] = " "
    path, settings = write(tmp_path / "kto.jsonl", rows), CheckSettings(format_name="kto")
    done = clean(path, tmp_path / "clean.jsonl", settings=settings)
    assert done.reasons == {"empty-answers": 2}
    assert rows_in(tmp_path / "clean.jsonl") == [*rows[:2], *rows[4:]]


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        (["identical-answer"], "--drop identical-answer: no such check; did you mean identical-answers"),
        (["length-bias"], "--drop length-bias: it is about the data set"),
    ],
)
def test_names_that_cannot_go(drop: list[str], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", clean_rows(2))
    with pytest.raises(UserError, match=message):
        clean(path, tmp_path / "clean.jsonl", drop=drop)
    assert not (tmp_path / "clean.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pairs.jsonl", "exists already; give another name, or --force"),
        ("none/out.jsonl", "the folder .* does not exist"),
        ("out.parquet", "rows are written as JSON lines"),
    ],
)
def test_a_place_that_cannot_be_written(name: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", clean_rows(2))
    with pytest.raises(UserError, match=message):
        clean(path, tmp_path / name)


def test_a_file_may_be_cleaned_in_place(tmp_path: Path) -> None:
    rows = clean_rows(4)
    rows[1]["chosen"] = rows[1]["rejected"]
    path = tmp_path / "pairs.jsonl"
    clean(write(path, rows), path, force=True)
    assert rows_in(path) == [rows[0], *rows[2:]]
    assert [entry.name for entry in tmp_path.iterdir()] == ["pairs.jsonl"]
