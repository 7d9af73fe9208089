"""One table of data formats: which columns they have and how a row becomes a Pair, Rated or Demonstration.

A new format is one entry in FORMATS. The first entry of the wanted kind whose columns are all there is taken.
Columns that any format may have besides: `tools` (list, or JSON text of one) and `chat_template_kwargs`.
Pairs stand among the unpaired formats too: there each is split into its two responses afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from localdpo.core.errors import UserError
from localdpo.data.fields import (
    RowProblem,
    RowSkip,
    read_answer,
    read_flag,
    read_messages,
    read_options,
    read_side,
    read_text,
)
from localdpo.data.texts import HUMAN, common_prefix, split_transcripts
from localdpo.data.types import Demonstration, Example, Kind, Message, Pair, Rated, Side

Record = Mapping[str, Any]
PARTED = "chosen and rejected part before the last answer"
NO_SHARED_PROMPT = "chosen and rejected share no prompt"
NO_ANSWER = "the conversation does not end with an assistant message"


@dataclass(frozen=True, slots=True)
class Format:
    """A row adapter. `read` raises RowProblem for a wrong row, RowSkip for one that cannot be used."""

    name: str
    kind: Kind
    columns: frozenset[str]
    read: Callable[[Record], Example]


def _explicit_pair(record: Record) -> Pair:
    prompt = read_side(record, "prompt")
    chosen, rejected = read_side(record, "chosen"), read_side(record, "rejected")
    if isinstance(chosen, str) or isinstance(rejected, str):
        return Pair(prompt, _single(chosen, "chosen"), _single(rejected, "rejected"), **read_options(record))
    shared, chosen, rejected = _split_messages(chosen, rejected)
    return Pair(_join_prompt(prompt, shared), chosen, rejected, **read_options(record))


def _join_prompt(prompt: Side, shared: list[Message]) -> list[Message]:
    """The prompt column with the messages that both sides open with.

    UltraFeedback and others give the prompt twice: as text, and again as the first messages of both sides.
    """
    if isinstance(prompt, str):
        has_turn = any(message["role"] == "user" for message in shared)
        return shared if has_turn else [*shared, {"role": "user", "content": prompt}]
    return shared if shared[: len(prompt)] == prompt else [*prompt, *shared]


def _implicit_pair(record: Record) -> Pair:
    chosen, rejected = read_side(record, "chosen"), read_side(record, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise RowProblem("rejected", "expected the same type as chosen (both text or both messages)")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return Pair(*_split_text(chosen, rejected), **read_options(record))
    prompt, chosen, rejected = _split_messages(chosen, rejected)
    if not prompt:
        raise RowSkip(NO_SHARED_PROMPT)
    return Pair(prompt, chosen, rejected, **read_options(record))


def _rated(record: Record) -> Rated:
    prompt, response = read_side(record, "prompt"), read_answer(record, "completion")
    return Rated(prompt, response, read_flag(record, "label"), **read_options(record))


def _messages(record: Record) -> Demonstration:
    messages = read_messages(record, "messages")
    if messages[-1]["role"] != "assistant":
        raise RowSkip(NO_ANSWER)
    return Demonstration(messages[:-1], messages[-1:], **read_options(record))


def _prompt_and(answer: str) -> Callable[[Record], Demonstration]:
    def read(record: Record) -> Demonstration:
        prompt, response = read_side(record, "prompt"), read_answer(record, answer)
        return Demonstration(prompt, response, **read_options(record))

    return read


def _text(record: Record) -> Demonstration:
    return Demonstration("", read_text(record, "text"), as_is=True)


def _format(name: str, kind: Kind, columns: str, read: Callable[[Record], Example]) -> Format:
    return Format(name, kind, frozenset(columns.split()), read)


FORMATS: tuple[Format, ...] = (
    _format("preference", "pairs", "prompt chosen rejected", _explicit_pair),
    _format("preference, implicit prompt", "pairs", "chosen rejected", _implicit_pair),
    _format("unpaired preference", "unpaired", "prompt completion label", _rated),
    _format("preference", "unpaired", "prompt chosen rejected", _explicit_pair),
    _format("preference, implicit prompt", "unpaired", "chosen rejected", _implicit_pair),
    _format("conversation", "demonstrations", "messages", _messages),
    _format("prompt and completion", "demonstrations", "prompt completion", _prompt_and("completion")),
    _format("prompt and response", "demonstrations", "prompt response", _prompt_and("response")),
    _format("text", "demonstrations", "text", _text),
)
_NAMES: dict[Kind, str] = {
    "pairs": "preference pairs",
    "demonstrations": "demonstrations",
    "unpaired": "labelled completions",
}


def detect(columns: Iterable[str], kind: Kind, label: str) -> Format:
    """The format of data with these columns. Raises UserError that says what was found and what would fit."""
    found = frozenset(columns)
    fitting = [entry for entry in FORMATS if entry.columns <= found]
    for entry in fitting:
        if entry.kind == kind:
            return entry
    wanted = "; or ".join(", ".join(sorted(entry.columns)) for entry in FORMATS if entry.kind == kind)
    have = ", ".join(sorted(found)[:20]) or "none"
    problem = f"holds {_NAMES[fitting[0].kind]}, but this loss needs" if fitting else "found no"
    raise UserError(f"{label}: {problem} {_NAMES[kind]} (columns: {have}); expected the columns {wanted}")


def _single(side: Side, name: str) -> Side:
    if isinstance(side, str):
        return side
    if len(side) != 1 or side[0]["role"] != "assistant":
        raise RowProblem(name, f"expected one assistant message, found {len(side)} messages")
    return side


def _split_messages(
    chosen: list[Message] | str, rejected: list[Message] | str
) -> tuple[list[Message], list[Message], list[Message]]:
    """Common leading messages, and the one assistant message that follows on each side."""
    assert isinstance(chosen, list)
    assert isinstance(rejected, list)
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    for name, rest in (("chosen", chosen[shared:]), ("rejected", rejected[shared:])):
        if rest[-1]["role"] != "assistant":
            found = rest[-1]["role"]
            raise RowProblem(name, f"expected an assistant message at the end, found role {found!r}")
        if len(rest) > 1:
            raise RowSkip(PARTED)
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _split_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The prompt that two whole texts share, cut where a word ends, and what follows it on each side.

    Human/Assistant transcripts are cut after the last Assistant mark instead. The white space at the cut goes
    to the responses, as tokenizers have it.
    """
    if chosen.startswith(HUMAN) and rejected.startswith(HUMAN):
        parts = split_transcripts(chosen, rejected)
        if parts is None:
            raise RowSkip(PARTED)
        return parts
    end = len(common_prefix([chosen, rejected]))
    while end > 0 and not all(end == len(text) or text[end].isspace() for text in (chosen, rejected)):
        end -= 1
    prompt = chosen[:end].rstrip()
    if not prompt:
        raise RowSkip(NO_SHARED_PROMPT)
    return prompt, chosen[len(prompt) :], rejected[len(prompt) :]
