"""Prompts to be answered are those that training reads: the same ids, in every format."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from published_rows import CHAT, PROMPTS, ROWS, SINGLE, assistant, user
from tiny_tokenizers import CHATML, chat_tokenizer

from localdpo.core.errors import UserError, UserErrors
from localdpo.data.encode import encode_prompt
from localdpo.data.formats import FORMATS, named_format
from localdpo.data.prompts import PromptRow, prompt_id, read_prompt_rows
from localdpo.data.store import open_store
from localdpo.data.types import Kind

TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}
TOOLS = "{% if tools %}{{ tools | tojson }}{% endif %}"
EXTRAS: list[dict[str, Any]] = [
    {},
    {"system": "Be brief."},
    {"tools": json.dumps([TOOL])},
    {"tools": [json.dumps(TOOL)], "system_prompt": "Be brief."},
]
TRAINED = [entry.name for entry in FORMATS if entry.kind != "prompts" and entry.name != "text"]
NAMED = ("hh", "kto")


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def ids_of(rows: list[PromptRow], tokenizer: Any) -> list[list[int]]:
    return [
        encode_prompt(
            tokenizer, row.prompt, "auto", tools=row.tools, template_kwargs=row.template_kwargs
        ).tolist()
        for row in rows
    ]


def test_every_format_has_a_row() -> None:
    assert {*ROWS, *SINGLE, *PROMPTS, "text"} == {entry.name for entry in FORMATS}


@pytest.mark.parametrize("extra", EXTRAS, ids=["plain", "system", "tools", "both"])
@pytest.mark.parametrize("name", TRAINED)
def test_prompt_ids_are_those_of_training(name: str, extra: dict[str, Any], tmp_path: Path) -> None:
    rows = ROWS.get(name) or [SINGLE[name]]
    kind: Kind = next(entry.kind for entry in FORMATS if entry.name == name)
    path = write(tmp_path / "rows.jsonl", [{**row, **extra} for row in rows])
    given = name if name in NAMED else None
    tokenizer = copy.deepcopy(chat_tokenizer("chatml"))
    tokenizer.chat_template = TOOLS + CHATML
    store = open_store(
        path,
        kind=kind,
        tokenizer=tokenizer,
        template="auto",
        max_length=4000,
        max_prompt_length=None,
        truncation="keep_start",
        format_name=given,
        cache_dir=tmp_path,
    )
    trained = [row.prompt.tolist() for row in store]
    found = read_prompt_rows(path, kind=kind, format_name=given)
    assert ids_of(found, tokenizer) == trained
    # Without the kind, as a file of prompts is read: of the very same rows the very same prompts.
    assert ids_of(read_prompt_rows(path, format_name=given), tokenizer)[: len(trained)] == trained
    if "system" in extra:
        assert "Be brief." in tokenizer.decode(trained[0])
    if "tools" in extra:
        assert "get_time" in tokenizer.decode(trained[0])


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_alone_is_read_in_every_format(name: str, tmp_path: Path) -> None:
    (row,) = read_prompt_rows(write(tmp_path / "rows.jsonl", [{**PROMPTS[name], "category": "c"}]))
    assert row.prompt in ("q", [user("q")])
    assert row.facts["category"] == "c"
    (named,) = read_prompt_rows(str(tmp_path / "rows.jsonl"), format_name=name)
    assert named == row


def test_a_conversation_is_asked_up_to_its_last_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"messages": [*CHAT, user("r")]}, {"messages": CHAT}])
    assert [row.prompt for row in read_prompt_rows(path)] == [[*CHAT, user("r")], [user("q")]]


def test_the_id_is_of_all_that_is_asked(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"prompt": "q"}, {"prompt": "q", "tools": [TOOL]}])
    plain, with_tools = read_prompt_rows(path)
    assert plain.id == prompt_id("q")
    assert with_tools.id != plain.id
    assert with_tools.tools == [TOOL]
    assert with_tools.facts == {}


def test_rows_that_training_leaves_out_are_not_asked(tmp_path: Path) -> None:
    last = {"prompt": "r", "chosen": "a", "rejected": "b"}
    equal = {**last, "prompt": "q", "score_chosen": 1, "score_rejected": 1}
    path = write(tmp_path / "rows.jsonl", [equal, {**last, "score_chosen": 2, "score_rejected": 1}])
    assert [row.prompt for row in read_prompt_rows(path, 1)] == ["r"]
    with pytest.raises(UserError, match=r"no prompts in it: both answers have the same score \(1 row\)"):
        read_prompt_rows(path, rows=1)


def test_what_has_no_prompt_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "all of it"}])
    with pytest.raises(UserError, match="rows of text have no prompt to answer"):
        read_prompt_rows(path, kind="demonstrations")
    with pytest.raises(UserError, match="found no prompts"):
        read_prompt_rows(path)
    path = write(tmp_path / "rows.jsonl", [{"prompt": "q"}, {"prompt": 3}, {"prompt": [assistant("a")]}])
    with pytest.raises(UserErrors, match=":2 prompt: expected text or a list of messages"):
        read_prompt_rows(path)


def test_any_format_may_be_named_for_prompts() -> None:
    assert {named_format(entry.name, "prompts").name for entry in FORMATS} == {e.name for e in FORMATS}
