"""`prefs convert`: whole files from one format to another and back, with what is lost counted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from clean_pairs import clean_rows, write

from localdpo.core.errors import UserError, UserErrors
from localdpo.data.messages import as_conversation
from localdpo.data.rows import read_examples
from localdpo.data.sources import open_source
from localdpo.prefs.rewrite import clean, convert, writable

SCORED = [{**row, "score_chosen": 5, "score_rejected": 3.5} for row in clean_rows(40)]


def rows_in(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def pairs_in(path: Path, format_name: str) -> list[Any]:
    rows = read_examples(open_source(str(path)), "pairs", None, format_name)
    return [as_conversation(pair.prompt, pair.responses) for _, pair in rows]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted({*writable()} - {"prompt-completion", "sft"}))
def test_there_and_back_again(name: str, tmp_path: Path) -> None:
    # Neighbours with one prompt must not be mixed up in formats with one answer a row.
    rows = [*SCORED, {**SCORED[-1], "chosen": "another one", "rejected": "yet another"}]
    source = write(tmp_path / "in.jsonl", rows)
    done = convert(source, tmp_path / "there.jsonl", name)
    assert (done.pairs, done.written) == (41, 82 if name == "kto" else 41)
    convert(str(tmp_path / "there.jsonl"), tmp_path / "back.jsonl", "preference", format_name=name)
    wanted = pairs_in(tmp_path / "in.jsonl", "preference")
    assert pairs_in(tmp_path / "there.jsonl", name) == wanted
    assert pairs_in(tmp_path / "back.jsonl", "preference") == wanted
    if not done.lost:
        back = rows_in(tmp_path / "back.jsonl")
        assert [row["score_rejected"] for row in back] == [3.5] * 41


def test_lost_columns_are_counted(tmp_path: Path) -> None:
    rows = [{**row, "facts": {"a": 1}, "tools": [{"name": "f"}]} for row in SCORED]
    rows[0]["facts"] = None
    done = convert(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", "stackexchange")
    assert done.lost == {"facts": 39, "score_chosen": 40, "score_rejected": 40, "tools": 40}
    assert convert(str(tmp_path / "in.jsonl"), tmp_path / "kept.jsonl", "preference").lost == {}
    assert rows_in(tmp_path / "kept.jsonl") == rows


@pytest.mark.parametrize("name", writable())
def test_that_an_answer_was_cut_is_kept_or_refused(name: str, tmp_path: Path) -> None:
    rows = [*SCORED[:3], {**SCORED[3], "rejected_finish_reason": "length"}]
    source, out = write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    kind = "demonstrations" if name in ("sft", "prompt-completion") else "pairs"
    try:
        convert(source, out, name)
    except UserErrors as error:
        (line,) = error.lines
        assert f":4 cannot be written as {name}: rejected_finish_reason: length" in line
        assert line.endswith("prefs clean IN OUT --drop cut-rejected")
        assert (kind, name in ("hh", "kto", "openai", "responses", "stackexchange")) == ("pairs", True)
        assert clean(source, tmp_path / "clean.jsonl", drop=["cut-rejected"]).kept == 3
        convert(str(tmp_path / "clean.jsonl"), out, name)
        return
    read = [row for _, row in read_examples(open_source(str(out)), kind)]  # type: ignore[arg-type]
    assert [all(row.ended) for row in read] == [True, True, True, kind == "demonstrations"]  # type: ignore[union-attr]


def test_ratings_change_their_name_on_the_way(tmp_path: Path) -> None:
    done = convert(write(tmp_path / "in.jsonl", SCORED), tmp_path / "out.jsonl", "argilla")
    assert (done.read_as, done.lost) == ("ultrafeedback", {})
    (first, *_) = rows_in(tmp_path / "out.jsonl")
    assert (first["chosen_rating"], first["rejected_rating"]) == (5, 3.5)


def test_rows_without_a_pair_are_left_out_and_counted(tmp_path: Path) -> None:
    rows = [*SCORED[:3], {**SCORED[3], "score_rejected": 5}]
    done = convert(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", "openai")
    assert (done.pairs, dict(done.skipped)) == (3, {"both answers have the same score": [3]})


def test_problems_come_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    rows: list[Any] = [*clean_rows(3), {"prompt": "q", "chosen": 1, "rejected": "b"}, "nonsense"]
    rows[1]["chosen"] = "\n\nHuman: me again"
    path = write(tmp_path / "in.jsonl", rows)
    with pytest.raises(UserErrors) as errors:
        convert(path, tmp_path / "out.jsonl", "hh")
    assert [line.removeprefix(path) for line in errors.value.lines] == [
        ":2 cannot be written as hh: chosen: holds a Human/Assistant mark, "
        "which would read as a turn of its own",
        ":4 chosen: expected text or a list of messages, got the number 1",
        ":5 not valid JSON at column 1: Expecting value",
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("shp", "--to shp: can be read but not written; expected one of ultrafeedback, argilla"),
        ("opnai", "--to opnai: no such format; did you mean openai"),
    ],
)
def test_a_format_that_cannot_be_written(to: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        convert(write(tmp_path / "in.jsonl", clean_rows(1)), tmp_path / "out.jsonl", to)


def test_data_without_a_pair_is_an_error(tmp_path: Path) -> None:
    rows = [{**SCORED[0], "score_rejected": 5}]
    with pytest.raises(UserError, match=r"no row makes a pair: both answers have the same score \(1\)"):
        convert(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", "openai")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", clean_rows(1))
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(UserError, match="cannot be written"):
        convert(source, tmp_path / "closed" / "out.jsonl", "openai")


def test_sft_rows_are_the_prompts_and_chosen_answers(tmp_path: Path) -> None:
    rows = [{**row, "topic": "t"} for row in SCORED[:3]]
    rows[2]["prompt"] = [{"role": "user", "content": "hi"}]
    done = convert(write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl", "sft")
    assert (done.to, done.written) == ("prompt-completion", 3)
    assert done.lost == {"score_chosen": 3, "score_rejected": 3}
    assert rows_in(tmp_path / "out.jsonl") == [
        {"topic": "t", "prompt": row["prompt"], "completion": row["chosen"]} for row in rows
    ]
    read = [row for _, row in read_examples(open_source(str(tmp_path / "out.jsonl")), "demonstrations")]
    assert read == [
        row for _, row in read_examples(open_source(str(tmp_path / "in.jsonl")), "demonstrations")
    ]
