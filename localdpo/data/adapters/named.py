"""Rows that hold a pair under other names, and rows that hold one answer of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from localdpo.data.fields import (
    RowProblem,
    describe,
    read_answer,
    read_label,
    read_messages,
    read_number,
    read_options,
    read_side,
)
from localdpo.data.types import Pair, Side

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer of a row that holds no other. Neighbours with one prompt and two scores make a pair."""

    prompt: Side
    response: Side
    score: float
    options: dict[str, Any] = field(default_factory=dict)

    def against(self, other: Answer) -> Pair:
        """The pair of two answers with different scores; this one was read first."""
        better, worse = (self, other) if self.score > other.score else (other, self)
        return Pair(self.prompt, better.response, worse.response, **self.options)


def openai(record: Record) -> Pair:
    """OpenAI's preference fine-tuning: `input.messages`, and one assistant message on either side."""
    given = record.get("input")
    if not isinstance(given, dict):
        raise RowProblem("input", f"expected an object with messages, got {describe(given)}")
    inner = {f"input.{name}": value for name, value in given.items()}
    prompt = read_messages(inner, "input.messages")
    chosen, rejected = read_answer(record, "preferred_output"), read_answer(record, "non_preferred_output")
    tools = given.get("tools") or record.get("tools")
    return Pair(prompt, chosen, rejected, **read_options({**record, "tools": tools}))


def helpsteer(record: Record) -> Answer:
    """HelpSteer and HelpSteer2: one answer a row, the two of a prompt in neighbouring rows."""
    score = read_number(record, "helpfulness")
    return Answer(read_side(record, "prompt"), read_answer(record, "response"), score, read_options(record))


def labelled(record: Record) -> Answer:
    """KTO's rows: a completion that is desirable (`label` true) or not."""
    score = float(read_label(record, "label"))
    return Answer(read_side(record, "prompt"), read_answer(record, "completion"), score, read_options(record))
