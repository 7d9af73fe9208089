"""Formats of published data sets: each is told by its columns, and gives the better answer as chosen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from published_rows import BOTH, ROWS, SHP, assistant, user
from tiny_tokenizers import chat_tokenizer

from localdpo.core.errors import UserError
from localdpo.data.formats import FORMATS, named_format
from localdpo.data.formats.pairs import CLOSE, EQUAL, FEW
from localdpo.data.messages import as_conversation
from localdpo.data.rows import UNMATCHED, InvalidRow, ReadRow, Skipped, read_rows, source_format
from localdpo.data.sources import open_source
from localdpo.data.store import open_store
from localdpo.data.types import Pair

# Named, not told: HH has the columns of a preference without a prompt, KTO has single answers.
MUST_BE_NAMED = ("hh", "kto")
PAIR_FORMATS = [entry.name for entry in FORMATS if entry.kind == "pairs"]


def rows_of(path: Path, *records: dict[str, Any], format_name: str | None = None) -> list[ReadRow]:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return list(read_rows(open_source(str(path)), "pairs", None, format_name))


def results(path: Path, *records: dict[str, Any], format_name: str | None = None) -> list[Any]:
    return [row.result for row in rows_of(path / "rows.jsonl", *records, format_name=format_name)]


def kto_of(record: dict[str, Any]) -> str | None:
    """The name of KTO's format for its rows, which are not told by their columns."""
    return "kto" if "label" in record else None


def test_every_format_of_pairs_has_a_published_row() -> None:
    assert sorted(ROWS) == sorted(PAIR_FORMATS)


@pytest.mark.parametrize("name", PAIR_FORMATS)
def test_a_published_row_gives_the_better_answer_as_chosen(name: str, tmp_path: Path) -> None:
    given = name if name in MUST_BE_NAMED else None
    (row,) = rows_of(tmp_path / "rows.jsonl", *ROWS[name], format_name=given)
    assert isinstance(row.result, Pair)
    assert as_conversation(row.result.prompt, row.result.responses) == (
        [user("q")],
        [assistant("a"), assistant("b")],
    )
    told = source_format(open_source(str(tmp_path / "rows.jsonl")), "pairs", given)
    assert told is not None
    assert told.name == name
    assert row.rows == tuple(range(len(ROWS[name])))


@pytest.mark.parametrize("name", PAIR_FORMATS)
def test_a_format_may_be_named(name: str, tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "rows.jsonl", *ROWS[name], format_name=name)
    assert isinstance(row.result, Pair)


def test_a_named_format_beats_the_columns(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "question": "q"}
    found = [results(tmp_path, row, format_name=name)[0].prompt for name in ("preference", "orca")]
    assert found == ["p", "q"]


def test_a_token_store_is_made_in_the_named_format(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "p p p", "chosen": "a", "rejected": "b", "question": "q"}) + "\n")

    def prompt_tokens(format_name: str | None) -> int:
        store = open_store(
            str(path),
            kind="pairs",
            tokenizer=chat_tokenizer("chatml"),
            template="auto",
            max_length=64,
            max_prompt_length=None,
            truncation="keep_start",
            format_name=format_name,
            cache_dir=tmp_path,
        )
        return int(store.prompt_lengths[0])

    assert prompt_tokens("orca") < prompt_tokens("preference")


def test_an_unknown_name_has_a_near_one() -> None:
    with pytest.raises(
        UserError, match=r"data.format: no format 'ultrafedback' .*did you mean ultrafeedback"
    ):
        named_format("ultrafedback", "pairs")
    with pytest.raises(
        UserError, match=r"no format 'prompt-completion' of preference pairs; expected one of ultraf"
    ):
        named_format("prompt-completion", "pairs")
    assert named_format("shp", "demonstrations").kind == "pairs"  # the chosen answers are learnt


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({**SHP, "labels": 1, "score_ratio": 1.9}, CLOSE),
        ({**ROWS["ultrafeedback"][0], "score_rejected": 8.5}, EQUAL),
        ({**ROWS["argilla"][0], "rejected_rating": 5}, EQUAL),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "chosen-rating": 3, "rejected-rating": 3}, EQUAL),
        ({**ROWS["helpsteer3"][0], "overall_preference": 0}, EQUAL),
        ({"instruction": "q", "generations": ["a", "b"], "ratings": [4, 4]}, EQUAL),
        ({"instruction": "q", "generations": ["a", "b"], "ratings": [None, 4]}, FEW),
        ({"instruction": "q", "completions": []}, FEW),
        ({"prompt": "q", "responses": ["a"], "pairs": []}, FEW),
        (ROWS["kto"][0], UNMATCHED),
        (ROWS["helpsteer"][0], UNMATCHED),
    ],
)
def test_rows_without_a_preference_are_skipped(record: dict[str, Any], reason: str, tmp_path: Path) -> None:
    assert results(tmp_path, record, format_name=kto_of(record)) == [Skipped(reason)]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**SHP, "labels": 2, "score_ratio": 3.0}, "labels: expected 1 (A is preferred) or 0 (B), got 2"),
        ({**SHP, "labels": 1, "score_ratio": "3"}, "score_ratio: expected a number, got text"),
        ({**ROWS["ultrafeedback"][0], "score_chosen": True}, "score_chosen: expected a number, got true"),
        (
            {"instruction": "q", "completions": [{"overall_score": 1}]},
            "completions[0].response: expected text, got null",
        ),
        (
            {"instruction": "q", "generations": ["a"], "ratings": [1, 2]},
            "ratings: expected 1, one for each generation, got 2",
        ),
        (
            {"prompt": "q", "responses": ["a", "b"], "pairs": [[0, 2]]},
            "pairs[0]: expected an index from 0 to 1, got the number 2",
        ),
        (
            {"input": {}, "preferred_output": "a", "non_preferred_output": "b"},
            "input.messages: missing; the row has no fields",
        ),
        ({"prompt": "q", "completion": "a", "label": "yes"}, "label: expected true or false, got text"),
        (
            {"prompt": "q", "completion": "a", "label": 0.5},
            "label: expected true or false, got the number 0.5",
        ),
    ],
)
def test_a_wrong_field_is_named(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    assert results(tmp_path, record, format_name=kto_of(record)) == [InvalidRow(message)]


def test_a_score_that_is_null_says_nothing(tmp_path: Path) -> None:
    (pair,) = results(tmp_path, {**ROWS["ultrafeedback"][0], "score_chosen": None})
    assert isinstance(pair, Pair)


def test_one_row_may_hold_several_pairs(tmp_path: Path) -> None:
    record = {"prompt": "q", "responses": ["a", "b", "c"], "pairs": [[0, 1], [2, 1]], "sft_target": "a"}
    assert results(tmp_path, record) == [Pair("q", "a", "b"), Pair("q", "c", "b")]


def test_a_system_message_opens_the_prompt(tmp_path: Path) -> None:
    (pair,) = results(tmp_path, {"system": "be brief", "question": "q", "chosen": "a", "rejected": "b"})
    assert pair.prompt == [{"role": "system", "content": "be brief"}, user("q")]


def test_neighbours_of_one_prompt_make_pairs_in_their_order(tmp_path: Path) -> None:
    def kto(prompt: str, completion: str, label: bool) -> dict[str, Any]:
        return {"prompt": prompt, "completion": completion, "label": label}

    rows = rows_of(
        tmp_path / "rows.jsonl",
        kto("p", "good 1", True),
        kto("p", "good 2", True),
        kto("p", "bad 1", False),
        kto("q", "bad", False),
        kto("q", "good", True),
        kto("r", "bad", False),
        kto("p", "bad 2", False),
        format_name="kto",
    )
    assert [(row.rows, row.result) for row in rows] == [
        ((0, 2), Pair("p", "good 1", "bad 1")),
        ((1,), Skipped(UNMATCHED)),
        ((3, 4), Pair("q", "good", "bad")),
        ((5,), Skipped(UNMATCHED)),
        ((6,), Skipped(UNMATCHED)),
    ]


def test_what_fits_no_format_names_the_usual_columns_and_the_closest_format(tmp_path: Path) -> None:
    usual = "expected the columns chosen, prompt, rejected; or chosen, rejected; or those of the other"
    with pytest.raises(UserError, match=rf"{usual} \d+ formats in docs/data\.md$"):
        results(tmp_path, {"good": "a", "bad": "b"})
    closest = r"stackexchange \(question, response_j, response_k\) is the closest"
    with pytest.raises(UserError, match=rf"{usual} \d+ formats in docs/data\.md, of which {closest}$"):
        results(tmp_path, {"question": "a", "response_j": "b", "best": 1})


def test_single_answers_are_paired_up_only_when_asked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found no|but this loss needs .*; or name the format kto$"):
        results(tmp_path, *ROWS["kto"])


def test_a_transcript_is_cut_at_its_last_answer(tmp_path: Path) -> None:
    (row,) = rows_of(tmp_path / "rows.jsonl", *ROWS["hh"])
    assert row.result == Pair("\n\nHuman: q\n\nAssistant:", " a", " b")


def test_options_ride_along_in_every_format(tmp_path: Path) -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    for name in PAIR_FORMATS:
        records = [{**record, "chat_template_kwargs": {"think": True}} for record in ROWS[name]]
        if name == "openai":
            records[0]["input"] = {**records[0]["input"], "tools": [tool]}
        else:
            records = [{**record, "tools": [tool]} for record in records]
        (pair,) = results(tmp_path, *records, format_name=name)
        assert (pair.tools, pair.template_kwargs) == ([tool], {"think": True}), name


def test_messages_of_both_sides_may_come_with_a_prompt(tmp_path: Path) -> None:
    (pair,) = results(tmp_path, {**ROWS["argilla"][0], **BOTH, "prompt": "q"})
    assert pair == Pair([user("q")], [assistant("a")], [assistant("b")])
