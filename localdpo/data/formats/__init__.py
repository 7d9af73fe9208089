"""One table of data formats: what each is called, its columns, how a row is read, how a pair is written.

A new format is one entry in FORMATS; how its rows are read is a function in `pairs` or `single`, most often
one that is there already. The first entry of the wanted kind whose columns are all there and not empty is
taken, so those with more columns come first. Columns that any format with a prompt may have besides: `system`
or `system_prompt`, `tools` (list, or JSON text of one) and `chat_template_kwargs`. Where labelled completions
are wanted, pairs are read too: each is split into its two responses afterwards. Where demonstrations are
wanted, the chosen answer of a pair is one. Where prompts are wanted, so are pairs: a prompt is read as
training would read it. Pairs may have the column `rejected_finish_reason` besides.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from localdpo.core.errors import UserError
from localdpo.core.text import counted
from localdpo.data.fields import COMMON, FINISH_REASON, has_content, read_label, read_number, read_text
from localdpo.data.formats import pairs, single, write
from localdpo.data.formats.pairs import ReadPrompt, ScoredAnswer, column, explicit
from localdpo.data.formats.write import Writer
from localdpo.data.messages import HUMAN
from localdpo.data.types import Demonstration, Example, Kind, Pair

Record = Mapping[str, Any]
Read: TypeAlias = "Callable[[Record], Example | Sequence[Pair] | ScoredAnswer]"


@dataclass(frozen=True, slots=True)
class Format:
    """A row adapter. `read` raises RowProblem for a wrong row, RowSkip for one that cannot be used.

    Attributes:
        name: what data.format and `prefs convert --to` call it.
        columns: those that a row must have; `reads`: all that `read` makes use of.
        read: a row as an example, several pairs, or one ScoredAnswer that its neighbour completes.
        write: the way back; None where scores or labels would have to be invented.
        usual: its columns are listed when no format fits.
        detected: False for one that must be named: HH has the columns of another entry, and a file of single
            answers is paired up only on request.
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


# --- entries of the table --------------------------------------------------------------------------------


def _format(
    name: str,
    kind: Kind,
    columns: str,
    read: Read,
    write: Writer | None = None,
    *,
    own: str = "",
    usual: bool = False,
    detected: bool = True,
    shares: bool = False,
) -> Format:
    """A format with a prompt; `own`: the columns that it reads besides those that it must have."""
    must = frozenset(columns.split())
    reads = must | COMMON | frozenset(own.split())
    return Format(name, kind, must, reads, single.completed(read), write, usual, detected, shares)


def _pairs(
    name: str, columns: str, read: Read, write: Writer | None = None, *, own: str = "", **options: Any
) -> Format:
    adapter = pairs.ending(pairs.unequal(read))
    return _format(name, "pairs", columns, adapter, write, own=f"{own} {FINISH_REASON}", **options)


def _prompt(name: str) -> tuple[ReadPrompt, str]:
    """How the prompt in this column is read, and the columns that are read with it: Alpaca's, or it alone."""
    return (single.alpaca, " ".join(single.ALPACA)) if name == "instruction" else (column(name), "")


def _two_answers(
    name: str, prompt: str, chosen: str, rejected: str, write: Writer | None = None, usual: bool = False
) -> Format:
    read, own = _prompt(prompt)
    columns = f"{prompt} {chosen} {rejected}"
    return _pairs(name, columns, explicit(read, chosen, rejected), write, own=own, usual=usual)


def _labelled(name: str, prompt: str, answer: str, label: str, usual: bool = False) -> Format:
    read, own = _prompt(prompt)
    adapter = single.rated(single.answered(read, answer), label)
    return _format(name, "unpaired", f"{prompt} {answer} {label}", adapter, own=own, usual=usual)


def _one_answer(
    name: str, prompt: str, answer: str, write: Writer | None = None, usual: bool = False
) -> Format:
    read, own = _prompt(prompt)
    adapter = single.demonstration(single.answered(read, answer))
    return _format(name, "demonstrations", f"{prompt} {answer}", adapter, write, own=own, usual=usual)


def _conversation(name: str, messages: str, usual: bool = False) -> Format:
    read = single.demonstration(single.conversation(messages))
    return _format(name, "demonstrations", messages, read, usual=usual)


def _labelled_conversation(name: str, messages: str, label: str) -> Format:
    read = single.rated(single.conversation(messages), label)
    return _format(name, "unpaired", f"{messages} {label}", read)


def _question(name: str, prompt: str, usual: bool = False) -> Format:
    read, own = _prompt(prompt)
    return _format(name, "prompts", prompt, single.prompt_only(read), own=own, usual=usual)


def _opening(name: str, messages: str) -> Format:
    return _format(name, "prompts", messages, single.prompt_only(single.opening(messages)))


def _text(record: Record) -> Demonstration:
    return Demonstration("", read_text(record, "text"), as_is=True)


FORMATS: Final[tuple[Format, ...]] = (
    _pairs(
        "ultrafeedback",
        "prompt chosen rejected score_chosen score_rejected",
        explicit(column("prompt")),
        write.ultrafeedback,
        own="prompt_id messages",
    ),
    _pairs(
        "argilla",
        "chosen rejected chosen_rating rejected_rating",
        pairs.either,
        write.argilla,
        own="prompt",
        shares=True,
    ),
    _two_answers("argilla-instruction", "instruction", "chosen_response", "rejected_response"),
    _two_answers("argilla-prompt", "prompt", "chosen_response", "rejected_response"),
    _two_answers("argilla-question", "question", "chosen_response", "rejected_response"),
    _two_answers("argilla-input", "input", "chosen_response", "rejected_response"),
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
    # One answer a row, the two of a prompt in neighbouring rows.
    _pairs("helpsteer", "prompt response helpfulness", pairs.alone("response", "helpfulness", read_number)),
    _two_answers("stackexchange", "question", "response_j", "response_k", write.stackexchange),
    _pairs("responses", "prompt responses pairs", pairs.responses, write.responses, own="sft_target"),
    _pairs(
        "kto",
        "prompt completion label",
        pairs.alone("completion", "label", read_label),
        write.labelled,
        detected=False,
    ),
    _two_answers("preference", "prompt", "chosen", "rejected", write.explicit, usual=True),
    _two_answers("alpaca-preference", "instruction", "chosen", "rejected"),
    _two_answers("orca", "question", "chosen", "rejected"),
    _two_answers("orca-input", "input", "chosen", "rejected"),
    _two_answers("messages-preference", "messages", "chosen", "rejected"),
    _two_answers("sharegpt-preference", "conversations", "chosen", "rejected"),
    _two_answers("conversation-preference", "conversation", "chosen", "rejected"),
    _two_answers("query-preference", "query", "chosen", "rejected"),
    _two_answers("user-preference", "user", "chosen", "rejected"),
    _two_answers("context-preference", "context", "chosen", "rejected"),
    _pairs("preference-implicit", "chosen rejected", pairs.implicit, write.implicit, usual=True, shares=True),
    _pairs("hh", "chosen rejected", pairs.implicit, write.transcripts, detected=False, shares=True),
    _labelled("unpaired", "prompt", "completion", "label", usual=True),
    _labelled("alpaca-unpaired", "instruction", "output", "kto_tag"),
    _labelled_conversation("messages-unpaired", "messages", "label"),
    _labelled_conversation("sharegpt-unpaired", "conversations", "kto_tag"),
    _conversation("conversation", "messages", usual=True),
    _conversation("sharegpt", "conversations"),
    _one_answer("prompt-completion", "prompt", "completion", write.demonstration, usual=True),
    _one_answer("prompt-response", "prompt", "response", usual=True),
    _one_answer("alpaca", "instruction", "output"),
    _one_answer("dolly", "instruction", "response"),
    _one_answer("question-response", "question", "response"),
    _one_answer("question-answer", "question", "answer"),
    _one_answer("prompt-output", "prompt", "output"),
    _one_answer("input-output", "input", "output"),
    _one_answer("user-assistant", "user", "assistant"),
    _conversation("chat", "conversation"),
    Format("text", "demonstrations", frozenset(["text"]), frozenset(["text"]), _text),
    _question("prompts", "prompt", usual=True),
    _opening("messages-prompts", "messages"),
    _opening("sharegpt-prompts", "conversations"),
    _opening("conversation-prompts", "conversation"),
    _question("alpaca-prompts", "instruction"),
    _question("question-prompts", "question"),
    _question("query-prompts", "query"),
    _question("input-prompts", "input"),
    _question("user-prompts", "user"),
    _question("context-prompts", "context"),
)
_NAMES: dict[Kind, str] = {
    "pairs": "preference pairs",
    "demonstrations": "demonstrations",
    "unpaired": "labelled completions",
    "prompts": "prompts",
}
_ACCEPTED: dict[Kind, tuple[Kind, ...]] = {
    "unpaired": ("unpaired", "pairs"),
    "demonstrations": ("demonstrations", "pairs"),
    "prompts": ("pairs", "prompts"),
}


def _accepted(kind: Kind) -> tuple[Kind, ...]:
    """The kinds of data that serve where `kind` is wanted, the best first."""
    return _ACCEPTED.get(kind, (kind,))


def detect(columns: Iterable[str], kind: Kind, label: str, empty: Collection[str] = ()) -> Format:
    """The format of data with these columns, of which some may hold nothing.

    A column that holds nothing makes no format, unless none is left, or only the one whose prompt is what
    both answers share: a prompt column that is there is the prompt, empty or not.
    Raises UserError that says what was found and what would fit.
    """
    present = frozenset(columns)
    filled = _first(present - frozenset(empty), kind)
    entry = _first(present, kind) if filled is None or filled.shares else filled
    if entry is not None:
        return entry
    fitting = [entry for entry in FORMATS if entry.detected and entry.columns <= present]
    other = next((_NAMES[entry.kind] for entry in fitting if "prompts" not in (entry.kind, kind)), None)
    of_kind = [entry for accepted in _accepted(kind) for entry in FORMATS if entry.kind == accepted]
    wanted = "; or ".join(", ".join(sorted(entry.columns)) for entry in of_kind if entry.usual)
    others = [entry for entry in of_kind if not entry.usual and entry.detected]
    more = f"; or those of the other {counted(len(others), 'format')} in docs/data.md" if others else ""
    closest = max(others, key=lambda entry: len(entry.columns & present), default=None)
    if closest is not None and closest.columns & present:
        more += f", of which {closest.name} ({', '.join(sorted(closest.columns))}) is the closest"
    more += "".join(
        f"; or name the format {entry.name}"
        for entry in of_kind
        if not entry.detected and entry.columns <= present
    )
    have = ", ".join(sorted(present)[:20]) or "none"
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
    chosen = record.get("chosen")
    has_prompt = "prompt" in entry.reads and has_content(record.get("prompt"))
    return entry.shares and not has_prompt and isinstance(chosen, str) and not chosen.startswith(HUMAN)
