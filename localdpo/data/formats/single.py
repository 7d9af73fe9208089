"""Rows of a prompt with one answer or none, and columns that may go with any prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from localdpo.data.fields import (
    MEDIA,
    SYSTEM,
    RowProblem,
    RowSkip,
    describe,
    has_content,
    read_label,
    read_text,
    text,
)
from localdpo.data.formats.pairs import ScoredAnswer
from localdpo.data.messages import read_answer, read_messages, read_options, read_side, transcript_messages
from localdpo.data.types import Demonstration, Message, Pair, Prompt, Rated, Side

Record = Mapping[str, Any]
ReadPrompt = Callable[[Record], Side]
ReadAnswered = Callable[[Record], tuple[Side, Side]]
"""A row as its prompt and its one answer."""
NO_ANSWER = "the conversation does not end with an assistant message"
NO_PROMPT = "the conversation has nothing before the assistant's message"
CONTINUED = "the prompt ends with an assistant's turn, and no template can continue it"
SYSTEMS = "the system column and the conversation have different system messages"
ALPACA = ("input", "context", "history")
"""What Alpaca's rows may have beside `instruction`: text to work on under one of two names, earlier turns."""


def alpaca(record: Record) -> Side:
    """`instruction`, and after a blank line `input` (Dolly: `context`) where it is not blank.

    `history` holds earlier turns, [question, answer] each.
    """
    words = read_side(record, "instruction")
    given = [name for name in ALPACA[:2] if has_content(record.get(name))]
    if len(given) > 1:
        raise RowProblem("context", "given together with input; expected only one of them")
    if given:
        name = given[0]
        if not isinstance(words, str):
            raise RowProblem(name, "given together with an instruction of messages; put it into one of them")
        words = f"{words}\n\n{read_text(record, name)}" if words.strip() else read_text(record, name)
    earlier = _history(record)
    if not earlier:
        return words
    return [*earlier, *([{"role": "user", "content": words}] if isinstance(words, str) else words)]


def _history(record: Record) -> list[Message]:
    turns = record.get("history")
    if not has_content(turns):
        return []
    if not isinstance(turns, list):
        raise RowProblem("history", f"expected a list of [question, answer], got {describe(turns)}")
    messages: list[Message] = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, list) or len(turn) != 2:
            raise RowProblem(f"history[{i}]", f"expected [question, answer], got {describe(turn)}")
        for role, words in zip(("user", "assistant"), turn, strict=True):
            messages.append({"role": role, "content": text(words, f"history[{i}]")})
    return messages


def conversation(name: str) -> ReadAnswered:
    """Messages that end with the answer, parted before it."""

    def read(record: Record) -> tuple[Side, Side]:
        messages = read_messages(record, name)
        if messages[-1]["role"] != "assistant":
            raise RowSkip(NO_ANSWER)
        return messages[:-1], messages[-1:]

    return read


def answered(prompt: ReadPrompt, answer: str) -> ReadAnswered:
    """A prompt, and the answer in a column of its own."""

    def read(record: Record) -> tuple[Side, Side]:
        response = read_answer(record, answer)
        return prompt(record), response

    return read


def demonstration(read: ReadAnswered) -> Callable[[Record], Demonstration]:
    """A prompt and one answer to imitate."""
    return lambda record: Demonstration(*read(record), **read_options(record))


def rated(read: ReadAnswered, label: str) -> Callable[[Record], Rated]:
    """A prompt, one answer, and whether it was desirable."""
    return lambda record: Rated(*read(record), read_label(record, label), **read_options(record))


def prompt_only(prompt: ReadPrompt) -> Callable[[Record], Prompt]:
    return lambda record: Prompt(prompt(record), **read_options(record))


def opening(name: str) -> ReadPrompt:
    """The messages before the last answer, or all where a conversation ends with a question; or text."""

    def read(record: Record) -> Side:
        side = read_side(record, name)
        if isinstance(side, str) or side[-1]["role"] != "assistant":
            return side
        if len(side) == 1:
            raise RowSkip(NO_PROMPT)
        return side[:-1]

    return read


# --- beside any prompt ---------------------------------------------------------------------------------

Asking = TypeVar("Asking", Pair, Demonstration, Rated, Prompt, ScoredAnswer)


def completed(read: Callable[[Record], Any]) -> Callable[[Record], Any]:
    """`read`, with the columns that may go with any prompt: the row's system message is put in front, and a
    row with pictures is refused. A prompt that ends with an assistant's turn is skipped: no answer to it is a
    turn of its own.
    """

    def read_whole(record: Record) -> Any:
        for name, what in MEDIA.items():
            if name in record and has_content(record[name]):
                raise RowProblem(
                    name, f"{what} cannot be trained on; take the column out to train on the words alone"
                )
        given = [read_text(record, name) for name in SYSTEM if has_content(record.get(name))]
        if len(given) > 1 and given[0] != given[1]:
            raise RowProblem(SYSTEM[1], f"says other than {SYSTEM[0]}; expected one of them")
        system, result = given[0] if given else None, read(record)
        if isinstance(result, list):
            return [_finish(pair, system) for pair in result]
        return _finish(result, system)

    return read_whole


def _finish(row: Asking, system: str | None) -> Asking:
    if system is not None:
        row = _with_system(row, system)
    prompt = row.prompt
    if not isinstance(prompt, str) and prompt and prompt[-1]["role"] == "assistant":
        raise RowSkip(CONTINUED)
    return row


def _with_system(row: Asking, system: str) -> Asking:
    prompt = row.prompt
    turns = transcript_messages(prompt) if isinstance(prompt, str) else None
    messages: list[Message]
    if not isinstance(prompt, str):
        messages = prompt
    else:
        messages = turns or ([{"role": "user", "content": prompt}] if prompt else [])
    present = [message["content"] for message in messages if message["role"] in ("system", "developer")]
    if any(words.strip() == system.strip() for words in present):
        return row
    if present:
        raise RowSkip(SYSTEMS)
    completed_row = replace(row, prompt=[{"role": "system", "content": system}, *messages])
    if turns is None:
        return completed_row
    # The space after a transcript's mark is no part of an answer that is a message.
    names = {Pair: ("chosen", "rejected"), Prompt: ()}.get(type(row), ("response",))
    sides: dict[str, Any] = {name: getattr(row, name) for name in names}
    sides = {name: side.removeprefix(" ") if isinstance(side, str) else side for name, side in sides.items()}
    return replace(completed_row, **sides)
