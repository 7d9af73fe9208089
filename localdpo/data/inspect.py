"""What is shown of token stores: what became of the rows, statistics, one row with its tokens marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localdpo.core.text import ROLES, counted
from localdpo.data.rows import describe_dropped, name_unread
from localdpo.data.store import Mixture, MixturePart, TokenStore
from localdpo.data.types import EncodedRow, Tokenizer

MARK, CLOSE, NEWLINE = "▸", "◂", "⏎\n"
# Bytes of one character may lie in several tokens, and some decoders drop a leading space: decode with a few
# tokens of context, and wait for the character to be complete.
_CONTEXT = 8
_BROKEN = "\ufffd"
# What templates call the roles.
_ROLE_NAMES = {
    **{role: role for role in ROLES},
    **{"human": "user", "inst": "user", "model": "assistant", "chatbot": "assistant", "/inst": "assistant"},
}


@dataclass(frozen=True, slots=True)
class LengthSummary:
    """Mean, median, 95th percentile and largest of some token counts."""

    mean: float
    median: float
    p95: float
    max: int


def statistics(store: TokenStore | Mixture) -> dict[str, LengthSummary]:
    """Token counts of all rows of a store: of `prompt`, `chosen` and `rejected` or `response`, and `row`, the
    prompt with the longest response."""
    responses = store.response_lengths
    names = ("chosen", "rejected") if responses.shape[1] == 2 else ("response",)
    parts = {"prompt": store.prompt_lengths, **dict(zip(names, responses.T, strict=True))}
    parts["row"] = store.prompt_lengths + responses.max(axis=1)
    return {name: _summary(lengths) for name, lengths in parts.items()}


def named_parts(train: Mixture, valid: Mixture) -> list[tuple[str, MixturePart]]:
    """The data sets of a run with the option that each is of: `data.train`, or `data.train b.jsonl` where it
    lists several. `valid` adds nothing where it is held out of `train`."""
    options = {"data.train": train} | ({} if valid is train else {"data.valid": valid})
    return [
        (option if len(mixture.parts) == 1 else f"{option} {part.source}", part)
        for option, mixture in options.items()
        for part in mixture.parts
    ]


def report_lines(name: str, part: MixturePart) -> list[str]:
    """A line each on dropped rows, columns that are not read, and what is worth knowing of the kept rows."""
    report = part.store.report
    lines = []
    if report.dropped_total:
        reasons = describe_dropped(dict(report.dropped))
        lines.append(f"{name}: dropped {report.dropped_total:,} of {counted(report.read, 'row')}: {reasons}")
    if report.unread:
        lines.append(f"{name}: {name_unread(report.unread)}")
    return lines + [f"{name}: {counted(rows, 'row')}: {note}" for note, rows in report.notes.items()]


def render_marked(row: EncodedRow, tokenizer: Tokenizer) -> str:
    """One row as text, special tokens visible: each scored token opens with ▸, the last one is closed by ◂.

    Needs no colour. A token that holds only a part of a character shows with the tokens that complete it.
    """
    label = {None: "response", True: "desirable response", False: "undesirable response"}[row.desirable]
    names = ("chosen", "rejected") if len(row.responses) == 2 else (label,)
    prompt = row.prompt.tolist()
    lines = [f"prompt ({counted(len(prompt), 'token')}, not scored):", _decode(tokenizer, prompt), ""]
    for name, response in zip(names, row.responses, strict=True):
        spans = token_spans(prompt, response.tolist(), tokenizer)
        marked = "".join(MARK + text.replace("\n", NEWLINE) for _, text in spans)
        lines += [f"{name} ({counted(len(response), 'token')}, all scored):", marked + CLOSE, ""]
    return "\n".join(lines).rstrip("\n") + "\n"


def token_spans(
    prompt: Sequence[int], response: Sequence[int], tokenizer: Tokenizer
) -> list[tuple[int, str]]:
    """(tokens, the text that they add) in the response's order; the counts add up to its length.

    A span is one token, or the few that make one character together.
    """
    before = prompt[-_CONTEXT:]
    ids = [*before, *response]
    spans: list[tuple[int, str]] = []
    start = len(before)
    for end in range(start + 1, len(ids) + 1):
        context = ids[max(0, start - _CONTEXT) : start]
        text = _decode(tokenizer, [*context, *ids[start:end]])[len(_decode(tokenizer, context)) :]
        if text.endswith(_BROKEN) and end < len(ids) and end - start < _CONTEXT:
            continue
        spans.append((end - start, text))
        start = end
    return spans


def prompt_words(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """An encoded prompt for people: `role: text`, turn by turn, as far as its template names the roles.

    The text alone of a single user's turn, and without special tokens where no role is named.
    """
    names = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    turns: list[tuple[str, str]] = [("", "")]
    mark, start = "", 0
    for place, id in enumerate([*ids, None]):
        if id is not None and id not in names:
            continue
        text = _decode(tokenizer, ids[start:place])
        head, _, rest = text.partition("\n")
        if (role := _role(head)) is not None:
            turns.append((role, rest))
        elif (role := _role(mark)) is not None:
            turns.append((role, text))
        else:
            turns[-1] = (turns[-1][0], turns[-1][1] + text)
        mark, start = names.get(id, "") if id is not None else "", place + 1
    said = [(role, text.strip()) for role, text in turns if text.strip()]
    if len(said) <= 1 and all(role in ("", "user") for role, _ in said):
        return said[0][1] if said else ""
    return "\n\n".join(f"{role}: {text}" if role else text for role, text in said)


def _role(mark: str) -> str | None:
    """The role that a control token (`<|user|>`, `[INST]`), or the line after one, stands for."""
    name = mark.strip("<|>[]").strip().lower().removesuffix("_token")
    return _ROLE_NAMES.get(name)


def _decode(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    text = tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text if isinstance(text, str) else "".join(text)


def _summary(lengths: NDArray[np.int32]) -> LengthSummary:
    median, p95 = np.percentile(lengths, [50, 95])
    return LengthSummary(float(lengths.mean()), float(median), float(p95), int(lengths.max()))
