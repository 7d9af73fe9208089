"""Objects that writers stored as JSON text, and the nulls that Arrow fills objects up with, are undone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from published_rows import assistant, user

from localdpo.data.fields import RowProblem
from localdpo.data.formats import named_format
from localdpo.data.rows import InvalidRow, read_rows
from localdpo.data.sources import open_source

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "get_time", "parameters": SCHEMA}}
PADDED = {**SCHEMA, "properties": {"city": {"type": "string", "enum": None}, "x": None}}
CALL = {"id": "1", "type": "function", "function": {"name": "get_time", "arguments": {"city": "Oslo"}}}
ASKED = {"role": "assistant", "tool_calls": [CALL]}


def with_arguments(arguments: Any) -> dict[str, Any]:
    return {**CALL, "function": {"name": "get_time", "arguments": arguments}}


def read(**record: Any) -> Any:
    base = {"prompt": [user("q")], "chosen": [ASKED], "rejected": [assistant("Late.")]}
    return named_format("preference", "pairs").read({**base, **record})


@pytest.mark.parametrize(
    "tools",
    [
        [TOOL],
        json.dumps([TOOL]),
        [json.dumps(TOOL)],
        [{"type": "function", "function": json.dumps(TOOL["function"])}],
        [{"type": "function", "function": {"name": "get_time", "parameters": json.dumps(SCHEMA)}}],
        [{"type": "function", "function": {"name": "get_time", "strict": None, "parameters": PADDED}}],
    ],
)
def test_tools_are_objects_however_they_are_stored(tools: Any) -> None:
    assert read(tools=tools).tools == [TOOL]


@pytest.mark.parametrize(
    "message",
    [
        ASKED,
        {**ASKED, "content": None, "name": None},
        {"role": "assistant", "tool_calls": json.dumps([CALL])},
        {"role": "assistant", "tool_calls": [json.dumps(CALL)]},
        {"role": "assistant", "tool_calls": [{**CALL, "function": json.dumps(CALL["function"])}]},
        {"role": "assistant", "tool_calls": [with_arguments('{"city": "Oslo"}')]},
        {"role": "assistant", "tool_calls": [with_arguments(json.dumps('{"city": "Oslo"}'))]},
        {"role": "assistant", "tool_calls": [with_arguments({"city": "Oslo", "zone": None})]},
        {"from": "gpt", "tool_calls": [CALL]},
    ],
)
def test_tool_calls_are_objects_however_they_are_stored(message: Any) -> None:
    assert read(chosen=[message]).chosen == [ASKED]
    assert read(chosen=json.dumps([message])).chosen == [ASKED]
    history = [user("p"), message, {"role": "tool", "content": "12:00", "tool_calls": None}, user("q")]
    result = {"role": "tool", "content": "12:00"}
    assert read(prompt=history, chosen="a").prompt == [user("p"), ASKED, result, user("q")]


def test_calls_of_other_writers_become_tool_calls() -> None:
    bare = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    said = json.dumps({"name": "f", "arguments": {"x": 1}})
    for message in (
        {"from": "function_call", "value": said},
        {"from": "function-call", "value": said},
        {"from": "function", "value": said},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": '{"x": 1}'}},
    ):
        prompt = [user("q"), message, {"from": "observation", "value": "[1]"}, user("r")]
        found = read(prompt=prompt).prompt
        assert found[1] == {"role": "assistant", "tool_calls": [bare]}
        assert found[2] == {"role": "tool", "content": "[1]"}


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ('{"zone": null, "x": {"y": null}}', {"zone": None, "x": {"y": None}}),
        ({"zone": None, "x": {"y": None}}, {"x": {}}),
        ({"names": ["a", None]}, {"names": ["a", None]}),
        ("", {}),
        ("not json", "not json"),
        ('"words"', '"words"'),
        ("[1]", "[1]"),
    ],
)
def test_a_null_within_json_text_was_meant(given: Any, kept: Any) -> None:
    (call,) = read(chosen=[{"role": "assistant", "tool_calls": [with_arguments(given)]}]).chosen[0][
        "tool_calls"
    ]
    assert call["function"]["arguments"] == kept


def test_no_calls_are_no_calls() -> None:
    for calls in (None, [], "", "[]", "null"):
        message = {"role": "assistant", "content": "a", "tool_calls": calls}
        assert read(chosen=[message]).chosen == [assistant("a")]


def test_words_are_never_decoded() -> None:
    words = json.dumps({"role": "x", "city": "Oslo"})
    assert read(prompt=words, chosen=words, rejected="b").chosen == words
    assert read(prompt=[user(words)]).prompt == [user(words)]
    (message,) = read(chosen=[{"role": "assistant", "content": words}]).chosen
    assert message["content"] == words
    assert (
        read(prompt=[user("q"), {"role": "tool", "content": words}, user("r")]).prompt[1]["content"] == words
    )


def test_parquet_gives_what_json_lines_give(tmp_path: Path) -> None:
    other = {
        **TOOL,
        "function": {
            "name": "add",
            "parameters": {"type": "object", "properties": {"x": {"type": "number"}}},
        },
    }
    rows = [
        {"prompt": [user("q")], "chosen": [ASKED], "rejected": [assistant("Late.")], "tools": [TOOL, other]},
        {"prompt": [user("r")], "chosen": [assistant("a")], "rejected": [assistant("b")], "tools": None},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = [
        [row.result for row in read_rows(open_source(str(tmp_path / name)), "pairs")]
        for name in ("rows.jsonl", "rows.parquet")
    ]
    assert found[0] == found[1]
    assert found[0][0].tools == [TOOL, other]  # type: ignore[union-attr]


def test_what_is_nested_too_deep_is_said(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    deep = "[" * 900 + "]" * 900
    path.write_text(f'{{"prompt": "q", "chosen": "a", "rejected": "b", "tools": {deep}, "hint": {deep}}}\n')
    (row,) = read_rows(open_source(str(path)), "pairs")
    assert not isinstance(row.result, InvalidRow) or "nested too deep" in row.result.message


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"chosen": [{"role": "assistant", "tool_calls": "[{"}]}, r"chosen\[0\].tool_calls: not valid JSON"),
        (
            {"chosen": [{"role": "assistant", "tool_calls": [3]}]},
            r"tool_calls\[0\]: expected an object, got the",
        ),
        (
            {"chosen": [{"role": "assistant", "content": "a", "images": ["cat.png"]}]},
            r"chosen\[0\].images: pictures cannot",
        ),
        ({"tools": ["get_time"]}, r"tools\[0\]: not valid JSON"),
        (
            {"tools": [{"function": {"name": "\ud83d"}}]},
            r"tools\[0\].function: character 1 is half of a surr",
        ),
        (
            {"chosen": [{"role": "assistant", "content": "a", "x": "\ud83d"}]},
            r"chosen\[0\]: character 1 is half",
        ),
    ],
)
def test_what_cannot_be_read_is_named(record: dict[str, Any], problem: str) -> None:
    with pytest.raises(RowProblem, match=problem):
        read(**record)
