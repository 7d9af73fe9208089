"""What a format writes it reads back as the same conversation, for every format with a way back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo.data.fields import RowProblem
from localdpo.data.formats import FORMATS, named_format
from localdpo.data.formats.pairs import RATINGS
from localdpo.data.formats.write import SCORES, WHITE_SPACE, Written
from localdpo.data.messages import as_conversation
from localdpo.data.rows import read_rows
from localdpo.data.sources import RowSource, SourceRow
from localdpo.data.types import Message, Pair

pytestmark = pytest.mark.slow

WRITABLE = [entry.name for entry in FORMATS if entry.write is not None and entry.kind != "demonstrations"]
# Formats of plain text lose white space at the ends of earlier turns, and say so.
TRANSCRIPTS = ("hh", "responses")
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
TOOLS = st.none() | st.just([{"type": "function", "function": {"name": "f"}}])
KWARGS = st.just({}) | st.just({"enable_thinking": False})


def message(role: str) -> st.SearchStrategy[Message]:
    return TEXT.map(lambda text: {"role": role, "content": text})


@st.composite
def dialogues(draw: st.DrawFn) -> list[Message]:
    """One to three turns of a person, with answers between them, and perhaps a system message."""
    start = draw(st.lists(message("system"), max_size=1))
    turns = draw(st.integers(1, 3))
    for turn in range(turns):
        start.append(draw(message("user")))
        if turn + 1 < turns:
            start.append(draw(message("assistant")))
    return start


PROMPTS = TEXT | dialogues()
ANSWERS = TEXT | message("assistant").map(lambda one: [one])
PAIRS = st.builds(Pair, PROMPTS, ANSWERS, ANSWERS, tools=TOOLS, template_kwargs=KWARGS)
OTHERS = st.fixed_dictionaries({SCORES[0]: st.floats(1, 5), SCORES[1]: st.floats(6, 9)})


def read_back(name: str, records: tuple[dict[str, Any], ...]) -> list[Any]:
    lines = [json.loads(json.dumps(record)) for record in records]
    source = RowSource("rows", "", lambda: (SourceRow(i, line) for i, line in enumerate(lines)))
    return [row.result for row in read_rows(source, "pairs", None, name)]


def write_or_refuse(name: str, pair: Pair, others: dict[str, Any]) -> Written | None:
    """What the format writes; None when a format of plain text refuses the pair."""
    write = named_format(name, "pairs").write
    assert write is not None
    if name not in (*TRANSCRIPTS, "stackexchange"):
        return write(pair, others)
    try:
        return write(pair, others)
    except RowProblem:
        return None


def stripped(messages: list[Message]) -> list[Message]:
    return [{**one, "content": one["content"].strip()} for one in messages]


@pytest.mark.parametrize("name", WRITABLE)
@given(pair=PAIRS, others=OTHERS)
def test_a_written_pair_is_read_back(name: str, pair: Pair, others: dict[str, Any]) -> None:
    written = write_or_refuse(name, pair, others)
    if written is None:
        return
    (found,) = read_back(name, written.records)
    prompt, answers = as_conversation(pair.prompt, pair.responses)
    back, back_answers = as_conversation(found.prompt, found.responses)
    assert back_answers == answers
    assert back == prompt or (WHITE_SPACE in written.lost and back == stripped(prompt))
    assert WHITE_SPACE not in written.lost or name in TRANSCRIPTS
    assert found.tools == (None if "tools" in written.lost else pair.tools)
    kept = {} if "chat_template_kwargs" in written.lost else pair.template_kwargs
    assert found.template_kwargs == kept


@pytest.mark.parametrize("name", ["preference", "ultrafeedback", "argilla"])
def test_scores_go_with_the_pair(name: str) -> None:
    write = named_format(name, "pairs").write
    assert write is not None
    (record,) = write(Pair("q", "a", "b"), {SCORES[0]: 4.5, SCORES[1]: 2}).records
    names = RATINGS[1] if name == "argilla" else SCORES
    assert [record[column] for column in names] == [4.5, 2]


@pytest.mark.parametrize("name", ["ultrafeedback", "argilla"])
def test_formats_of_scores_need_them(name: str) -> None:
    write = named_format(name, "pairs").write
    assert write is not None
    with pytest.raises(RowProblem, match="score_chosen: missing; this format needs the scores"):
        write(Pair("q", "a", "b"), {})


@pytest.mark.parametrize(
    ("name", "pair", "message"),
    [
        ("hh", Pair("q", "\n\nHuman: more", "b"), "chosen: holds a Human/Assistant mark"),
        ("hh", Pair([{"role": "system", "content": "s"}], "a", "b"), "has no 'system'"),
        ("stackexchange", Pair([{"role": "user", "content": "q"}] * 2, "a", "b"), "the row has 2 messages"),
        (
            "stackexchange",
            Pair("q", [{"role": "assistant", "content": "a", "tool_calls": [1]}], "b"),
            "a message with tool_calls; this format keeps text only",
        ),
        ("preference-implicit", Pair([], "a", "b"), "prompt: empty"),
    ],
)
def test_a_pair_without_a_place_is_refused(name: str, pair: Pair, message: str) -> None:
    write = named_format(name, "pairs").write
    assert write is not None
    with pytest.raises(RowProblem, match=message):
        write(pair, {})


def test_a_transcript_stays_as_it_is() -> None:
    pair = Pair("\n\nHuman: hi\n\nAssistant:", " Hey", " Hello")
    write = named_format("hh", "pairs").write
    assert write is not None
    (found,) = read_back("hh", write(pair, {}).records)
    assert found == pair
