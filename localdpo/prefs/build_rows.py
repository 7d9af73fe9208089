"""The rows of a build: prompt, both answers, their scores, the prompt's own columns, and their origin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from localdpo.data.fields import OPTIONS
from localdpo.data.prompts import PromptRow
from localdpo.judging.base import Verdict
from localdpo.prefs.selection import Chosen
from localdpo.records.answers import AnswerRecord

UNSCORED_COLUMNS: Final = ("prompt", "chosen", "rejected", "provenance")
OWN_COLUMNS: Final = (*UNSCORED_COLUMNS, "score_chosen", "score_rejected", "margin")
HASH_DIGITS: Final = 16


@dataclass(frozen=True, slots=True)
class Asked:
    """One verdict that a pair rests on: the names of the answers in the order they were asked in."""

    names: tuple[str, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Built:
    """A pair that is kept, and every verdict about its prompt's answers."""

    pair: Chosen
    asked: tuple[Asked, ...]


def row_of(
    built: Built,
    prompt: PromptRow,
    answers: Mapping[str, AnswerRecord],
    temperatures: Mapping[str, float],
    common: Mapping[str, Any],
) -> dict[str, Any]:
    """One row of the output.

    The prompt's other columns go along, but those that a pair has itself. `margin` is the chosen score less
    the rejected one. `provenance` holds `common` (hashes, sampling, judge), the prompt's id, of each side the
    candidate, its temperature and tokens, the verdicts, and what they cost in US dollars.
    """
    pair = built.pair
    sides = {"chosen": pair.chosen, "rejected": pair.rejected}
    row: dict[str, Any] = {"prompt": prompt.prompt}
    row |= {name: value for name, value in prompt.facts.items() if name not in OWN_COLUMNS}
    row |= {name: value for name, value in zip(OPTIONS, prompt.options, strict=True) if value}
    row |= {side: _answer(prompt, answers[name].text) for side, name in sides.items()}
    if pair.scores is not None:
        chosen, rejected = pair.scores
        row |= {"score_chosen": chosen, "score_rejected": rejected, "margin": chosen - rejected}
    row["provenance"] = {
        "prompt": prompt.id,
        **common,
        **{
            side: {"candidate": name, "temperature": temperatures[name], "tokens": answers[name].tokens}
            for side, name in sides.items()
        },
        "verdicts": [_verdict(asked) for asked in built.asked],
        "usd": sum(asked.verdict.usage.usd for asked in built.asked),
    }
    return row


def _answer(prompt: PromptRow, text: str) -> str | list[dict[str, str]]:
    """An answer in the prompt's own form: text, or one message."""
    return text if isinstance(prompt.prompt, str) else [{"role": "assistant", "content": text}]


def _verdict(asked: Asked) -> dict[str, Any]:
    """What was asked and said, without the judge's words; they are in the journal."""
    verdict = asked.verdict
    said: dict[str, Any] = {"of": list(asked.names)}
    said |= {"choice": verdict.choice} if len(asked.names) == 2 else {"score": verdict.score}
    return said if verdict.principle is None else said | {"principle": verdict.principle}


def longer_share(pairs: Sequence[tuple[int, int]]) -> float | None:
    """The share of (chosen tokens, rejected tokens) whose chosen answer is longer; None without pairs."""
    return sum(chosen > rejected for chosen, rejected in pairs) / len(pairs) if pairs else None
