"""Row adapters: every format becomes the same pair, and what is wrong is said with its field."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo.core.errors import UserError, UserErrors
from localdpo.data import formats
from localdpo.data.fields import RowProblem, RowSkip
from localdpo.data.formats import FORMATS, detect, named_format
from localdpo.data.formats.pairs import NO_SHARED_PROMPT, PARTED, ScoredAnswer
from localdpo.data.formats.single import NO_ANSWER
from localdpo.data.rows import Skipped, read_examples
from localdpo.data.sources import open_source
from localdpo.data.types import Demonstration, Example, Kind, Pair, Rated


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def read(kind: Kind, **record: Any) -> Example:
    return detect(record, kind, "data").read(record)


IN_MESSAGES = Pair([user("q")], [assistant("a")], [assistant("b")])


@pytest.mark.parametrize(
    ("record", "pair"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, Pair("q", "a", "b")),
        ({"prompt": [user("q")], "chosen": [assistant("a")], "rejected": [assistant("b")]}, IN_MESSAGES),
        ({"prompt": [user("q")], "chosen": "a", "rejected": "b"}, Pair([user("q")], "a", "b")),
        ({"prompt": "q", "chosen": [assistant("a")], "rejected": [assistant("b")]}, IN_MESSAGES),
        ({"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}, IN_MESSAGES),
        # UltraFeedback: the prompt as text and again inside both sides.
        (
            {"prompt": "q", "chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]},
            IN_MESSAGES,
        ),
        # As older writers of Arrow store a list of messages.
        (
            {
                "prompt": {"role": ["user"], "content": ["q"]},
                "chosen": {"role": ["assistant"], "content": ["a"], "tool_calls": None},
                "rejected": {"role": ["assistant"], "content": ["b"]},
            },
            IN_MESSAGES,
        ),
        ({"chosen": "Q: x\nyes", "rejected": "Q: x\nno"}, Pair("Q: x", "\nyes", "\nno")),
        ({"chosen": "one two three", "rejected": "one two thirty"}, Pair("one two", " three", " thirty")),
        ({"chosen": "one two", "rejected": "one two three"}, Pair("one two", "", " three")),
        (
            {"chosen": "\n\nHuman: hi\n\nAssistant: Hey", "rejected": "\n\nHuman: hi\n\nAssistant: Hello"},
            Pair("\n\nHuman: hi\n\nAssistant:", " Hey", " Hello"),
        ),
    ],
)
def test_pairs(record: dict[str, Any], pair: Pair) -> None:
    assert read("pairs", **record) == pair


@pytest.mark.parametrize(
    ("record", "demonstration"),
    [
        ({"messages": [user("q"), assistant("a")]}, Demonstration([user("q")], [assistant("a")])),
        ({"prompt": "q", "completion": "a"}, Demonstration("q", "a")),
        ({"prompt": "q", "response": "a"}, Demonstration("q", "a")),
        (
            {"prompt": [user("q")], "completion": [assistant("a")]},
            Demonstration([user("q")], [assistant("a")]),
        ),
        ({"text": "all of it"}, Demonstration("", "all of it", as_is=True)),
        # The preferred conversation of a preference set that also gives it as messages.
        (
            {"prompt": "q", "chosen": [], "rejected": [], "messages": [user("q"), assistant("a")]},
            Demonstration([user("q")], [assistant("a")]),
        ),
    ],
)
def test_demonstrations(record: dict[str, Any], demonstration: Demonstration) -> None:
    assert read("demonstrations", **record) == demonstration


def test_tools_and_template_options_ride_along() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    options = {"tools": json.dumps([tool]), "chat_template_kwargs": {"enable_thinking": False, "unset": None}}
    pair = read("pairs", prompt="q", chosen="a", rejected="b", **options)
    assert pair.tools == [tool]
    assert pair.template_kwargs == {"enable_thinking": False}


def test_text_parts_become_text() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    row = read("demonstrations", messages=[{"role": "user", "content": parts}, assistant("c")])
    assert row.prompt == [user("ab")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": None}, "prompt: expected text or a list of messages, got null"),
        ({"prompt": 3}, "prompt: expected text or a list of messages, got the number 3"),
        ({"prompt": []}, "prompt: expected messages, got an empty list"),
        ({"prompt": ["q"]}, r"prompt\[0\]: expected a message \(role and content\), got text"),
        ({"prompt": [{"content": "q"}]}, r"prompt\[0\].role: expected text, got null"),
        ({"prompt": [{"role": "", "content": "q"}]}, r"prompt\[0\].role: expected a role"),
        ({"prompt": [{"role": "user"}]}, r"prompt\[0\].content: expected text, got null"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}]}, "only text can be trained on"),
        (
            {"prompt": {"role": ["user"], "content": []}},
            "prompt: expected text or a list of messages, got an object",
        ),
        ({"prompt": "\ud83d"}, "prompt: character 1 is half of a surrogate pair"),
        ({"chosen": [user("q")]}, "chosen: expected one assistant message"),
        (
            {"chosen": [user("x")], "rejected": [user("x")]},
            "chosen: expected an assistant message at the end",
        ),
        ({"tools": "[", "chosen": "a"}, "tools: not valid JSON"),
        ({"tools": {}}, "tools: expected a list, got an object"),
        ({"chat_template_kwargs": []}, "chat_template_kwargs: expected an object"),
        (
            {"chat_template_kwargs": {"chat_template": "x"}},
            "chat_template_kwargs.chat_template: data may not set",
        ),
    ],
)
def test_wrong_fields_are_named(record: dict[str, Any], message: str) -> None:
    with pytest.raises(RowProblem, match=message):
        read("pairs", **{"prompt": "q", "chosen": "a", "rejected": "b", **record})


@pytest.mark.parametrize(
    ("kind", "record", "reason"),
    [
        ("pairs", {"chosen": "yes", "rejected": "no"}, NO_SHARED_PROMPT),
        ("pairs", {"chosen": [assistant("a")], "rejected": [assistant("b")]}, NO_SHARED_PROMPT),
        (
            "pairs",
            {
                "chosen": [user("q"), assistant("a"), user("r"), assistant("c")],
                "rejected": [user("q"), assistant("b"), user("r"), assistant("c")],
            },
            PARTED,
        ),
        (
            "pairs",
            {
                "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
                "rejected": "\n\nHuman: a\n\nAssistant: B\n\nHuman: c\n\nAssistant: d",
            },
            PARTED,
        ),
        ("demonstrations", {"messages": [user("q")]}, NO_ANSWER),
    ],
)
def test_rows_that_cannot_be_used_say_why(kind: Kind, record: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowSkip) as skip:
        read(kind, **record)
    assert skip.value.reason == reason


def test_the_wrong_kind_of_data_says_what_was_found() -> None:
    with pytest.raises(
        UserError, match=r"holds demonstrations, but this loss needs preference pairs .*columns: prompt, resp"
    ):
        detect(["prompt", "response"], "pairs", "f.jsonl")
    with pytest.raises(UserError, match="holds labelled completions, but this loss needs preference pairs"):
        detect(["messages", "label"], "pairs", "f.jsonl")
    with pytest.raises(UserError, match=r"found no preference pairs .*columns: output, score"):
        detect(["output", "score"], "pairs", "f.jsonl")


def test_every_format_is_reached_by_its_own_columns() -> None:
    found = [entry for entry in FORMATS if entry.detected]
    assert [detect(entry.columns, entry.kind, "f") for entry in found] == found


# --- files of rows -------------------------------------------------------------------------------------

GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}


def examples_of(path: Path, *lines: Any, kind: Kind = "pairs") -> list[tuple[int, Example | Skipped]]:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return list(read_examples(open_source(str(path)), kind))


def test_all_problems_come_at_once_with_file_and_row(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    lacking = {"prompt": "q", "chosen": "a"}
    with pytest.raises(UserErrors) as errors:
        examples_of(path, lacking, GOOD, "{not json", "[1]", {**GOOD, "chosen": 5})
    assert [line.removeprefix(f"{path}:") for line in errors.value.lines] == [
        "1 rejected: missing; the row has prompt, chosen",
        "3 not valid JSON at column 2: Expecting property name enclosed in double quotes",
        "4 expected an object with named fields",
        "5 chosen: expected text or a list of messages, got the number 5",
    ]


def test_more_than_twenty_problems_are_counted(tmp_path: Path) -> None:
    rows = [{"prompt": number, "chosen": "a", "rejected": "b"} for number in range(3000)]
    with pytest.raises(UserErrors) as errors:
        examples_of(tmp_path / "pairs.jsonl", GOOD, *rows)
    assert len(errors.value.lines) == 21
    assert errors.value.lines[-1].endswith("2,980 more rows with problems")


def test_one_problem_of_many_rows_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserErrors) as errors:
        examples_of(tmp_path / "pairs.jsonl", GOOD, *[{"prompt": "q"}] * 3000, "[1]")
    assert [line.partition(".jsonl:")[2] for line in errors.value.lines] == [
        "2 chosen: missing; the row has prompt; the same in 2,999 more rows",
        "3002 expected an object with named fields",
    ]


def test_nothing_but_broken_lines_is_said_as_such(tmp_path: Path) -> None:
    with pytest.raises(UserErrors, match=":1 not valid JSON"):
        examples_of(tmp_path / "pairs.jsonl", "nonsense")


def test_skipped_rows_keep_their_number(tmp_path: Path) -> None:
    parted = {"chosen": "yes", "rejected": "no"}
    shared = {"chosen": "q yes", "rejected": "q no"}
    rows = examples_of(tmp_path / "pairs.jsonl", parted, "", shared)
    assert rows == [(0, Skipped(NO_SHARED_PROMPT)), (2, Pair("q", " yes", " no"))]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
MESSAGE = st.fixed_dictionaries({}, optional={"role": JSON, "content": JSON, "tool_calls": JSON})
NAMES = sorted({name for entry in FORMATS for name in entry.columns} | {"tools", "chat_template_kwargs"})
RECORD = st.dictionaries(st.sampled_from(NAMES), JSON | st.lists(MESSAGE, max_size=3))


@given(entry=st.sampled_from(FORMATS), record=RECORD)
def test_no_row_makes_an_adapter_fail_otherwise(entry: Any, record: dict[str, Any]) -> None:
    with contextlib.suppress(RowProblem, RowSkip):
        found = entry.read(record)
        examples = found if isinstance(found, list) else [found]
        assert all(isinstance(one, Pair | Demonstration | Rated | ScoredAnswer) for one in examples)


def test_a_format_is_one_entry_of_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Detection, the name in a recipe, reading and the message that lists the formats follow from it."""
    entry = formats._two_answers("duel", "ask", "winner", "loser", usual=True)
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, entry))
    data = tmp_path / "duels.jsonl"
    data.write_text(json.dumps({"ask": "q", "winner": "a", "loser": "b", "system": "Be kind."}) + "\n")
    pair = Pair([{"role": "system", "content": "Be kind."}, user("q")], "a", "b")
    for name in (None, "duel"):
        assert list(read_examples(open_source(str(data)), "pairs", format_name=name)) == [(0, pair)]
    assert named_format("duel", "pairs") is entry
    with pytest.raises(UserError, match="or ask, loser, winner"):
        detect(["other"], "pairs", "data")
