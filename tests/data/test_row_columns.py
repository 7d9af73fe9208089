"""No column is passed over without a word, and every prompt column is the prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from published_rows import PROMPTS, ROWS, SINGLE, assistant, user
from tiny_tokenizers import chat_tokenizer

from localdpo.data.encode import IDENTICAL
from localdpo.data.fields import COMMON, keeps_records
from localdpo.data.formats import FORMATS
from localdpo.data.formats.single import CONTINUED, SYSTEMS
from localdpo.data.inspect import report_lines
from localdpo.data.rows import AGAINST_SCORES, SHARED_WORDS, InvalidRow, ReadingNotes, Skipped, read_rows
from localdpo.data.sources import open_source
from localdpo.data.store import MixturePart, open_store
from localdpo.data.types import Demonstration, Kind, Pair, Rated
from localdpo.prefs.check import as_object, check

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
SYSTEM = {"role": "system", "content": "Be brief."}


def read(
    folder: Path, *records: dict[str, Any], kind: Kind = "pairs", named: str | None = None
) -> tuple[list[Any], ReadingNotes]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    notes = ReadingNotes()
    rows = [row.result for row in read_rows(open_source(str(path)), kind, None, named, notes)]
    return rows, notes


class Watched(dict[str, Any]):
    """A row that remembers which of its columns were asked for."""

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(record)
        self.asked: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        self.asked.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)


@pytest.mark.parametrize("name", [entry.name for entry in FORMATS])
def test_a_format_names_all_that_it_reads(name: str) -> None:
    entry = next(one for one in FORMATS if one.name == name)
    rows = ROWS.get(name) or [SINGLE.get(name) or PROMPTS.get(name) or {"text": "a"}]
    for record in map(Watched, rows):
        entry.read(record)
        assert {column for column in record.asked if not keeps_records(column)} <= entry.reads


@pytest.mark.parametrize("name", [entry.name for entry in FORMATS if entry.kind == "pairs"])
def test_every_format_of_pairs_reads_that_an_answer_was_cut_or_refuses_it(name: str, tmp_path: Path) -> None:
    records = [record | {"rejected_finish_reason": "length"} for record in ROWS[name]]
    (first, *_), notes = read(tmp_path, *records, named=name)
    assert not notes.unread
    if isinstance(first, Pair):
        assert first.ended == (True, False)
    else:
        assert (
            first.message
            == "rejected_finish_reason: length, but rows of this format have no one rejected answer"
        )


def test_the_reason_for_an_end_is_one_of_two_words_or_absent(tmp_path: Path) -> None:
    for reason in (None, "stop"):
        assert read(tmp_path, PAIR | {"rejected_finish_reason": reason})[0] == [Pair("q", "a", "b")]
    for reason, shown in (("tool_calls", "'tool_calls'"), ("", "''"), (True, "true"), (["length"], "a list")):
        (row,), _ = read(tmp_path, PAIR | {"rejected_finish_reason": reason})
        assert row == InvalidRow(f'rejected_finish_reason: expected "length" or "stop", got {shown}')
    same = PAIR | {"rejected": "a", "rejected_finish_reason": "length"}
    assert read(tmp_path, same)[0] == [Skipped(IDENTICAL)]
    # The system message is put in front of an answer that was cut as of any other.
    (row,), _ = read(tmp_path, PAIR | {"system": "Be brief.", "rejected_finish_reason": "length"})
    assert row == Pair([SYSTEM, user("q")], "a", "b", rejected_ended=False)


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"instruction": "q", "input": ""}, "q"),
        ({"instruction": "q", "input": None}, "q"),
        ({"instruction": "Add.", "input": "2 and 3"}, "Add.\n\n2 and 3"),
        ({"instruction": "", "input": "q"}, "q"),
        ({"instruction": "q", "history": [["a", "b"]]}, [user("a"), assistant("b"), user("q")]),
        ({"question": "q"}, "q"),
        ({"query": "q"}, "q"),
        ({"context": [user("q")]}, [user("q")]),
        ({"messages": [user("q")]}, [user("q")]),
        ({"messages": json.dumps([user("q")])}, [user("q")]),
        ({"messages": "q"}, "q"),
        ({"conversations": [{"from": "human", "value": "q"}]}, [user("q")]),
        ({"conversation": [{"role": "human", "text": "q"}]}, [user("q")]),
        ({"prompt": json.dumps([user("q")])}, [user("q")]),
        ({"prompt": '["a list", "of words"]'}, '["a list", "of words"]'),
    ],
)
@pytest.mark.parametrize("form", ["text", "object", "list", "sharegpt", "json"])
def test_a_prompt_column_is_the_prompt(
    record: dict[str, Any], prompt: Any, form: str, tmp_path: Path
) -> None:
    def answer(words: str) -> Any:
        message = assistant(words)
        told = {"from": "gpt", "value": words}
        forms = {"object": message, "list": [message], "sharegpt": told, "json": json.dumps([message])}
        return forms.get(form, words)

    row = {**record, "chosen": answer("The red one."), "rejected": answer("The red planet.")}
    (pair,), notes = read(tmp_path, row)
    assert isinstance(pair, Pair)
    expected = prompt if form == "text" or not isinstance(prompt, str) else [user(prompt)]
    assert pair.prompt == expected
    assert not notes.unread
    assert not notes.counts()


@pytest.mark.parametrize("name", ["system", "system_prompt"])
@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("q", [SYSTEM, user("q")]),
        ([user("q")], [SYSTEM, user("q")]),
        ([SYSTEM, user("q")], [SYSTEM, user("q")]),
        ("\n\nHuman: q\n\nAssistant:", [SYSTEM, user("q")]),
    ],
)
def test_a_system_column_opens_the_prompt(name: str, prompt: Any, expected: Any, tmp_path: Path) -> None:
    (pair,), notes = read(tmp_path, {**PAIR, "prompt": prompt, "chosen": " a", name: "Be brief."})
    assert pair.prompt == expected
    assert not notes.unread
    assert pair.chosen == ("a" if isinstance(prompt, str) and prompt.startswith("\n") else " a")


def test_two_system_messages_are_not_chosen_between(tmp_path: Path) -> None:
    other = {**PAIR, "prompt": [SYSTEM, user("q")], "system": "Be verbose."}
    both = {**PAIR, "system": "Be brief.", "system_prompt": "Be verbose."}
    (skipped, problem), _ = read(tmp_path, other, both)
    assert skipped == Skipped(SYSTEMS)
    assert problem == InvalidRow("system_prompt: says other than system; expected one of them")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", ["cat.png"]),
        ("image", {"bytes": "x", "path": None}),
        ("videos", ["a.mp4"]),
        ("audio", "a.wav"),
    ],
)
def test_a_row_with_pictures_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    (problem,), _ = read(tmp_path, {**PAIR, name: value})
    assert isinstance(problem, InvalidRow)
    assert problem.message.startswith(f"{name}: ")
    assert "cannot be trained on" in problem.message


@pytest.mark.parametrize("value", [None, [], "", [None], {"bytes": None, "path": None}])
def test_no_pictures_are_no_problem(value: Any, tmp_path: Path) -> None:
    (pair,), notes = read(tmp_path, {**PAIR, "images": value})
    assert isinstance(pair, Pair)
    assert not notes.unread


def test_columns_that_nobody_reads_are_counted_once(tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": f"q{n}", "hint": "x" if n else " ", "persona": {"x": None}} for n in range(4)]
    _, notes = read(tmp_path, *rows)
    assert dict(notes.unread) == {"hint": 3}


def test_records_of_a_row_are_no_note(tmp_path: Path) -> None:
    records = {"id": 1, "prompt_id": "x", "source": "s", "score_chosen": 2, "score_rejected": 1, "margin": 1}
    records |= {
        "chosen_model": "m",
        "provenance": {"a": 1},
        "facts": {"a": 1},
        "label": {"row": 1},
        "url": "u",
    }
    _, notes = read(tmp_path, {**PAIR, **records})
    assert not notes.unread
    assert not notes.counts()


def test_the_demo_has_no_notes() -> None:
    for source, kind in (
        ("demo:preferences/train", "pairs"),
        ("demo:demonstrations/train", "demonstrations"),
    ):
        notes = ReadingNotes()
        rows = read_rows(open_source(source), kind, 200, None, notes)  # type: ignore[arg-type]
        assert len(list(rows)) == 200
        assert not notes.unread
        assert not notes.counts()


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({**PAIR, "question": "r"}, "question: another prompt beside prompt"),
        ({**PAIR, "messages": [user("r")]}, "messages: another prompt beside prompt"),
        ({"question": "q", "context": "c", "chosen": "a", "rejected": "b"}, "context: another prompt beside"),
        ({"instruction": "q", "input": "c", "context": "d", "chosen": "a", "rejected": "b"}, "context: "),
    ],
)
def test_two_prompts_that_differ_are_refused(record: dict[str, Any], problem: str, tmp_path: Path) -> None:
    (found,), _ = read(tmp_path, record)
    assert isinstance(found, InvalidRow)
    assert found.message.startswith(problem)


@pytest.mark.parametrize(
    "other",
    [
        {"question": "q"},
        {"messages": [user("q"), assistant("a")]},
        {"conversation": [{"input": "q", "output": "a"}]},
        {"input": "", "instruction": None},
    ],
)
def test_a_second_prompt_that_says_the_same_is_no_problem(other: dict[str, Any], tmp_path: Path) -> None:
    (pair,), notes = read(tmp_path, {**PAIR, **other})
    assert pair == Pair("q", "a", "b")
    assert not notes.unread


def test_words_that_both_answers_share_are_a_prompt_only_without_one(tmp_path: Path) -> None:
    answers = {"chosen": "The answer is 4.", "rejected": "The answer is 5."}
    (pair, transcript), notes = read(
        tmp_path,
        answers,
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    )
    assert pair.prompt == "The answer is"
    assert transcript.prompt == "\n\nHuman: q\n\nAssistant:"
    assert notes.counts() == {SHARED_WORDS: 1}
    for empty in ("", None):
        (found,), notes = read(tmp_path, {"prompt": empty, **answers})
        assert not notes.counts()
        assert found == (Pair("", *answers.values()) if empty == "" else found)


def test_scores_against_the_order_are_counted(tmp_path: Path) -> None:
    scores = {"score_chosen": 1, "score_rejected": 2.5}
    _, notes = read(tmp_path, {**PAIR, **scores}, {**PAIR, "score_chosen": 3, "score_rejected": 2.5})
    assert notes.against_scores == [0]
    assert notes.counts() == {AGAINST_SCORES: 1}


def test_notes_stand_in_the_report_and_in_check(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {**PAIR, "prompt": f"q{n}", "hint": "x", "b": 1, "a": 1, "score_chosen": 1, "score_rejected": 2}
        | ({"seen": True} if n else {"first": 1})
        for n in range(3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):  # made, and read from the cache
        store = open_store(
            str(path),
            kind="pairs",
            tokenizer=chat_tokenizer("chatml"),
            template="auto",
            max_length=64,
            max_prompt_length=None,
            truncation="keep_start",
            cache_dir=tmp_path,
        )
        assert report_lines("data.train", MixturePart(store, "rows")) == [
            "data.train: columns that are not read: hint, b, a (3 rows); seen (2 rows); first (1 row)",
            f"data.train: 3 rows: {AGAINST_SCORES}",
        ]
    found = {one["name"]: one for one in as_object(check(str(path)))["findings"]}
    assert "hint, b, a (3 rows); seen (2 rows); first (1 row)" in found["unread-columns"]["message"]
    assert found["scores-against-order"]["count"] == 3


@pytest.mark.parametrize("label", [1, 1.0, True, "true", "True", " 1 ", "1"])
@pytest.mark.parametrize("kind", ["unpaired", "pairs"])
def test_a_label_may_be_written_in_many_ways(label: Any, kind: Kind, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a", "label": label}]
    rows.append({"prompt": "q", "completion": "b", "label": 0 if not isinstance(label, str) else "false"})
    found, _ = read(tmp_path, *rows, kind=kind, named="kto" if kind == "pairs" else None)
    if kind == "pairs":
        assert found == [Pair("q", "a", "b")]
    else:
        assert found == [Rated("q", "a", True), Rated("q", "b", False)]


@pytest.mark.parametrize("name", SINGLE)
def test_rows_of_one_answer_are_read(name: str, tmp_path: Path) -> None:
    kind: Kind = "unpaired" if "unpaired" in name else "demonstrations"
    (row,), notes = read(tmp_path, SINGLE[name], kind=kind)
    assert row.prompt in ("q", [user("q")])
    assert row.response in ("a", [assistant("a")])
    assert not notes.unread
    assert not isinstance(row, Rated) or row.desirable


def test_an_assistant_s_turn_at_the_prompt_s_end_is_refused(tmp_path: Path) -> None:
    opened = [user("Write a haiku."), assistant("Old pond,")]
    (pair,), _ = read(tmp_path, {**PAIR, "prompt": opened})
    assert pair == Skipped(CONTINUED)
    (chat,), _ = read(tmp_path, {"messages": [*opened, assistant("a")]}, kind="demonstrations")
    assert chat == Skipped(CONTINUED)


def test_text_has_no_prompt_to_put_a_system_message_before(tmp_path: Path) -> None:
    (row,), notes = read(tmp_path, {"text": "all", "system": "Be brief."}, kind="demonstrations")
    assert row == Demonstration("", "all", as_is=True)
    assert dict(notes.unread) == {"system": 1}
    assert not COMMON & next(entry for entry in FORMATS if entry.name == "text").reads
