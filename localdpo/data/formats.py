"""One table of data formats: their columns, how a row becomes an example, and how a Pair is written.

A new format is one entry in FORMATS. The first entry of the wanted kind whose columns are all there is taken,
so those with more columns stand first. Columns that any format may have besides: `tools` (list, or JSON text
of one) and `chat_template_kwargs`. Adapters of published data sets are in adapters/. Where labelled
completions are wanted, pairs are read too: each is split into its two responses afterwards.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from localdpo.core.errors import UserError
from localdpo.data.adapters import named, scored, write
from localdpo.data.adapters.write import Writer
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
    """A row adapter. `read` raises RowProblem for a wrong row, RowSkip for one that cannot be used.

    Attributes:
        name: what data.format and `prefs convert --to` call it.
        read: gives an example, several pairs, or one Answer that its neighbour completes.
        write: the way back; None where scores or labels would have to be made up.
        usual: named in full when no format fits.
        detected: False for one that must be named: HH has the columns of another entry, and a file of single
            answers is not paired up unasked.
        own: columns besides `columns` that `read` makes use of, so that a conversion does not lose them.
    """

    name: str
    kind: Kind
    columns: frozenset[str]
    read: Callable[[Record], Example | Sequence[Pair] | named.Answer]
    write: Writer | None = None
    usual: bool = True
    detected: bool = True
    own: frozenset[str] = frozenset()


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


def _format(
    name: str,
    kind: Kind,
    columns: str,
    read: Callable[[Record], Example | Sequence[Pair] | named.Answer],
    write: Writer | None = None,
) -> Format:
    return Format(name, kind, frozenset(columns.split()), read, write)


def _pairs_as(
    name: str,
    columns: str,
    read: Callable[[Record], Pair | Sequence[Pair] | named.Answer],
    write: Writer | None = None,
    own: str = "",
) -> Format:
    """The format of a published data set of pairs."""
    entry = _format(name, "pairs", columns, read, write)
    return replace(entry, usual=False, own=frozenset(own.split()))


_SYSTEM = "system system_prompt"
FORMATS: tuple[Format, ...] = (
    _pairs_as(
        "ultrafeedback",
        "prompt chosen rejected score_chosen score_rejected",
        scored.unequal(_explicit_pair),
        write.ultrafeedback,
        own="prompt_id messages",
    ),
    _pairs_as(
        "argilla",
        "chosen rejected chosen_rating rejected_rating",
        scored.unequal(
            lambda record: _explicit_pair(record) if "prompt" in record else _implicit_pair(record)
        ),
        write.argilla,
        own="prompt",
    ),
    _pairs_as(
        "argilla-instruction",
        "instruction chosen_response rejected_response",
        scored.unequal(named.renamed("instruction", "chosen_response", "rejected_response")),
        own=_SYSTEM,
    ),
    _pairs_as("openai", "input preferred_output non_preferred_output", named.openai, write.openai),
    _pairs_as("shp", "history human_ref_A human_ref_B labels score_ratio", scored.shp),
    _pairs_as("ultrafeedback-ratings", "instruction completions", scored.completions),
    _pairs_as(
        "distilabel",
        "instruction generations ratings",
        scored.generations("instruction", "ratings"),
        own=_SYSTEM,
    ),
    _pairs_as(
        "distilabel-input", "input generations rating", scored.generations("input", "rating"), own=_SYSTEM
    ),
    _pairs_as(
        "helpsteer3",
        "context response1 response2 overall_preference",
        scored.signed("context", "response1", "response2", "overall_preference"),
    ),
    _pairs_as(
        "helpsteer2-preference",
        "prompt response_1 response_2 preference_strength",
        scored.signed("prompt", "response_1", "response_2", "preference_strength"),
    ),
    _pairs_as("helpsteer", "prompt response helpfulness", named.helpsteer),
    _pairs_as(
        "stackexchange",
        "question response_j response_k",
        named.renamed("question", "response_j", "response_k"),
        write.stackexchange,
        own=_SYSTEM,
    ),
    _pairs_as("responses", "prompt responses pairs", scored.responses, write.responses, own="sft_target"),
    _pairs_as(
        "orca", "question chosen rejected", named.renamed("question", "chosen", "rejected"), own=_SYSTEM
    ),
    _pairs_as(
        "orca-input", "input chosen rejected", named.renamed("input", "chosen", "rejected"), own=_SYSTEM
    ),
    replace(_pairs_as("kto", "prompt completion label", named.labelled, write.labelled), detected=False),
    _format("preference", "pairs", "prompt chosen rejected", scored.unequal(_explicit_pair), write.explicit),
    _format(
        "preference-implicit", "pairs", "chosen rejected", scored.unequal(_implicit_pair), write.implicit
    ),
    replace(
        _format("hh", "pairs", "chosen rejected", _implicit_pair, write.transcripts),
        usual=False,
        detected=False,
    ),
    _format("unpaired", "unpaired", "prompt completion label", _rated),
    _format("conversation", "demonstrations", "messages", _messages),
    _format("prompt-completion", "demonstrations", "prompt completion", _prompt_and("completion")),
    _format("prompt-response", "demonstrations", "prompt response", _prompt_and("response")),
    _format("text", "demonstrations", "text", _text),
)
_NAMES: dict[Kind, str] = {
    "pairs": "preference pairs",
    "demonstrations": "demonstrations",
    "unpaired": "labelled completions",
}


def _accepted(kind: Kind) -> tuple[Kind, ...]:
    """The kinds of data that serve where `kind` is wanted, the best first."""
    return ("unpaired", "pairs") if kind == "unpaired" else (kind,)


def detect(columns: Iterable[str], kind: Kind, label: str) -> Format:
    """The format of data with these columns. Raises UserError that says what was found and what would fit."""
    found = frozenset(columns)
    fitting = [entry for entry in FORMATS if entry.detected and entry.columns <= found]
    for accepted in _accepted(kind):
        for entry in fitting:
            if entry.kind == accepted:
                return entry
    of_kind = [entry for accepted in _accepted(kind) for entry in FORMATS if entry.kind == accepted]
    wanted = "; or ".join(", ".join(sorted(entry.columns)) for entry in of_kind if entry.usual)
    others = [entry.name for entry in of_kind if not entry.usual and entry.detected]
    more = f"; or those of {', '.join(others)}" if others else ""
    more += "".join(
        f"; or name the format {entry.name}"
        for entry in of_kind
        if not entry.detected and entry.columns <= found
    )
    have = ", ".join(sorted(found)[:20]) or "none"
    problem = f"holds {_NAMES[fitting[0].kind]}, but this loss needs" if fitting else "found no"
    raise UserError(
        f"{label}: {problem} {_NAMES[kind]} (columns: {have}); expected the columns {wanted}{more}"
    )


def named_format(name: str, kind: Kind, setting: str = "data.format") -> Format:
    """The format of this name. Raises UserError, which begins with `setting`, for none or of another kind."""
    accepted = _accepted(kind)
    for entry in FORMATS:
        if entry.name == name and entry.kind in accepted:
            return entry
    names = [entry.name for entry in FORMATS if entry.kind in accepted]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
    raise UserError(f"{setting}: no format {name!r} of {_NAMES[kind]}; {hint}")


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
