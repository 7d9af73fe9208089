"""One table of data formats: their columns, how a row becomes an example, and how a Pair is written.

A new format is one entry in FORMATS. The first entry of the wanted kind whose columns are all there and not
empty is taken, so those with more columns stand first. Columns that any format with a prompt may have
besides: `system` or `system_prompt`, `tools` (list, or JSON text of one) and `chat_template_kwargs`. Adapters
are in adapters/. Where labelled completions are wanted, pairs are read too: each is split into its two
responses afterwards. Where prompts are wanted, so are they: a prompt is read as training would read it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from localdpo.core.errors import UserError
from localdpo.data.fields import COMMON, has_content, read_text
from localdpo.data.formats import pairs, single, write
from localdpo.data.formats.pairs import ScoredAnswer, column, explicit
from localdpo.data.formats.single import ALPACA, alpaca, opening
from localdpo.data.formats.write import Writer
from localdpo.data.types import Demonstration, Example, Kind, Pair

Record = Mapping[str, Any]
Read: TypeAlias = "Callable[[Record], Example | Sequence[Pair] | ScoredAnswer]"


@dataclass(frozen=True, slots=True)
class Format:
    """A row adapter. `read` raises RowProblem for a wrong row, RowSkip for one that cannot be used.

    Attributes:
        name: what data.format and `prefs convert --to` call it.
        columns: those that a row must have; `reads`: all that `read` makes use of.
        read: gives an example, several pairs, or one Answer that its neighbour completes.
        write: the way back; None where scores or labels would have to be made up.
        usual: named in full when no format fits.
        detected: False for one that must be named: HH has the columns of another entry, and a file of single
            answers is not paired up unasked.
        shares: the prompt may have to be what both answers open with.
    """

    name: str
    kind: Kind
    columns: frozenset[str]
    reads: frozenset[str]
    read: Read
    write: Writer | None = None
    usual: bool = True
    detected: bool = True
    shares: bool = False


def _format(
    name: str,
    kind: Kind,
    columns: str,
    read: Read,
    write: Writer | None = None,
    *,
    own: Iterable[str] = (),
    usual: bool = False,
    detected: bool = True,
    shares: bool = False,
) -> Format:
    """The entry of a format with a prompt; `own`: what it reads besides its columns."""
    must = frozenset(columns.split())
    reads = must | COMMON | frozenset(own)
    return Format(name, kind, must, reads, single.completed(read), write, usual, detected, shares)


def _pairs(name: str, columns: str, read: Read, write: Writer | None = None, **options: Any) -> Format:
    return _format(name, "pairs", columns, pairs.unequal(read), write, **options)


def _text(record: Record) -> Demonstration:
    return Demonstration("", read_text(record, "text"), as_is=True)


_CHAT = {"messages": "messages", "conversations": "sharegpt", "conversation": "conversation"}
"""Columns of messages, and what their formats are called."""

FORMATS: tuple[Format, ...] = (
    _pairs(
        "ultrafeedback",
        "prompt chosen rejected score_chosen score_rejected",
        explicit(column("prompt")),
        write.ultrafeedback,
        own=("prompt_id", "messages"),
    ),
    _pairs(
        "argilla",
        "chosen rejected chosen_rating rejected_rating",
        pairs.either,
        write.argilla,
        own=("prompt",),
        shares=True,
    ),
    _pairs(
        "argilla-instruction",
        "instruction chosen_response rejected_response",
        explicit(alpaca, "chosen_response", "rejected_response"),
        own=ALPACA,
    ),
    *(
        _pairs(
            f"argilla-{name}",
            f"{name} chosen_response rejected_response",
            explicit(column(name), "chosen_response", "rejected_response"),
        )
        for name in ("prompt", "question", "input")
    ),
    _pairs("openai", "input preferred_output non_preferred_output", pairs.openai, write.openai),
    _pairs("shp", "history human_ref_A human_ref_B labels score_ratio", pairs.shp),
    _pairs("ultrafeedback-ratings", "instruction completions", pairs.completions),
    _pairs("distilabel", "instruction generations ratings", pairs.generations("instruction", "ratings")),
    _pairs("distilabel-input", "input generations rating", pairs.generations("input", "rating")),
    _pairs(
        "helpsteer3",
        "context response1 response2 overall_preference",
        pairs.signed("context", "response1", "response2", "overall_preference"),
    ),
    _pairs(
        "helpsteer2-preference",
        "prompt response_1 response_2 preference_strength",
        pairs.signed("prompt", "response_1", "response_2", "preference_strength"),
    ),
    _pairs("helpsteer", "prompt response helpfulness", pairs.helpsteer),
    _pairs(
        "stackexchange",
        "question response_j response_k",
        explicit(column("question"), "response_j", "response_k"),
        write.stackexchange,
    ),
    _pairs("responses", "prompt responses pairs", pairs.responses, write.responses, own=("sft_target",)),
    _pairs("kto", "prompt completion label", pairs.labelled, write.labelled, detected=False),
    _pairs("preference", "prompt chosen rejected", explicit(column("prompt")), write.explicit, usual=True),
    _pairs("alpaca-preference", "instruction chosen rejected", explicit(alpaca), own=ALPACA),
    _pairs("orca", "question chosen rejected", explicit(column("question"))),
    _pairs("orca-input", "input chosen rejected", explicit(column("input"))),
    *(
        _pairs(f"{name}-preference", f"{given} chosen rejected", explicit(column(given)))
        for given, name in (*_CHAT.items(), *((name, name) for name in ("query", "user", "context")))
    ),
    _pairs("preference-implicit", "chosen rejected", pairs.implicit, write.implicit, usual=True, shares=True),
    _pairs("hh", "chosen rejected", pairs.implicit, write.transcripts, detected=False, shares=True),
    _format(
        "unpaired",
        "unpaired",
        "prompt completion label",
        single.rated(column("prompt"), "completion", "label"),
        usual=True,
    ),
    _format(
        "alpaca-unpaired",
        "unpaired",
        "instruction output kto_tag",
        single.rated(alpaca, "output", "kto_tag"),
        own=ALPACA,
    ),
    *(
        _format(
            f"{_CHAT[given]}-unpaired",
            "unpaired",
            f"{given} {label}",
            single.rated_conversation(given, label),
        )
        for given, label in (("messages", "label"), ("conversations", "kto_tag"))
    ),
    _format("conversation", "demonstrations", "messages", single.conversation("messages"), usual=True),
    _format("sharegpt", "demonstrations", "conversations", single.conversation("conversations")),
    *(
        _format(
            f"prompt-{answer}",
            "demonstrations",
            f"prompt {answer}",
            single.answered(column("prompt"), answer),
            usual=True,
        )
        for answer in ("completion", "response")
    ),
    _format("alpaca", "demonstrations", "instruction output", single.answered(alpaca, "output"), own=ALPACA),
    _format(
        "dolly", "demonstrations", "instruction response", single.answered(alpaca, "response"), own=ALPACA
    ),
    *(
        _format(
            f"question-{answer}",
            "demonstrations",
            f"question {answer}",
            single.answered(column("question"), answer),
        )
        for answer in ("response", "answer")
    ),
    *(
        _format(
            f"{given}-{answer}", "demonstrations", f"{given} {answer}", single.answered(column(given), answer)
        )
        for given, answer in (("prompt", "output"), ("input", "output"), ("user", "assistant"))
    ),
    _format("chat", "demonstrations", "conversation", single.conversation("conversation")),
    Format("text", "demonstrations", frozenset(["text"]), frozenset(["text"]), _text),
    _format("prompts", "prompts", "prompt", single.asked(column("prompt")), usual=True),
    *(
        _format(f"{name}-prompts", "prompts", given, single.asked(opening(given)))
        for given, name in _CHAT.items()
    ),
    _format("alpaca-prompts", "prompts", "instruction", single.asked(alpaca), own=ALPACA),
    *(
        _format(f"{name}-prompts", "prompts", name, single.asked(column(name)))
        for name in ("question", "query", "input", "user", "context")
    ),
)
_NAMES: dict[Kind, str] = {
    "pairs": "preference pairs",
    "demonstrations": "demonstrations",
    "unpaired": "labelled completions",
    "prompts": "prompts",
}
_ACCEPTED: dict[Kind, tuple[Kind, ...]] = {
    "unpaired": ("unpaired", "pairs"),
    "prompts": ("pairs", "prompts"),
}


def _accepted(kind: Kind) -> tuple[Kind, ...]:
    """The kinds of data that serve where `kind` is wanted, the best first."""
    return _ACCEPTED.get(kind, (kind,))


def detect(columns: Iterable[str], kind: Kind, label: str, empty: Collection[str] = ()) -> Format:
    """The format of data with these columns, of which some may hold nothing.

    A column that holds nothing makes no format, unless none is left, or only the one whose prompt is what
    both answers share: a prompt column that stands there is the prompt, empty or not.
    Raises UserError that says what was found and what would fit.
    """
    found = frozenset(columns)
    filled = _first(found - frozenset(empty), kind)
    entry = _first(found, kind) if filled is None or filled.shares else filled
    if entry is not None:
        return entry
    fitting = [entry for entry in FORMATS if entry.detected and entry.columns <= found]
    other = next((_NAMES[entry.kind] for entry in fitting if "prompts" not in (entry.kind, kind)), None)
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
    problem = f"holds {other}, but this loss needs" if other else "found no"
    raise UserError(
        f"{label}: {problem} {_NAMES[kind]} (columns: {have}); expected the columns {wanted}{more}"
    )


def _first(columns: frozenset[str], kind: Kind) -> Format | None:
    for accepted in _accepted(kind):
        for entry in FORMATS:
            if entry.detected and entry.kind == accepted and entry.columns <= columns:
                return entry
    return None


def named_format(name: str, kind: Kind, setting: str = "data.format") -> Format:
    """The format of this name. Raises UserError, which begins with `setting`, for none or of another kind."""
    # A prompt may be read of any data that has one.
    accepted = tuple(_NAMES) if kind == "prompts" else _accepted(kind)
    for entry in FORMATS:
        if entry.name == name and entry.kind in accepted:
            return entry
    names = [entry.name for entry in FORMATS if entry.kind in accepted]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(names)}"
    raise UserError(f"{setting}: no format {name!r} of {_NAMES[kind]}; {hint}")


def words_are_shared(entry: Format, record: Record) -> bool:
    """Whether the prompt of a row was made of the words that both answers happen to open with."""
    return (
        entry.shares
        and pairs.splits_words(record)
        and not ("prompt" in entry.reads and has_content(record.get("prompt")))
    )
