"""The upper half of an evaluation: a row for each heuristic, a column for each model, and a difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from localdpo.data.prompts import PromptRow
from localdpo.evals.statistics import Estimate, paired_difference
from localdpo.heuristics import Direction, Heuristic
from localdpo.records.answers import AnswerRecord

# Finer differences between two computers' arithmetic must not show in a file.
DIGITS: Final = 6


@dataclass(frozen=True, slots=True)
class Measured:
    """One metric of every answer: contestant -> a value for each prompt, None where it does not apply."""

    name: str
    direction: Direction
    digits: int
    values: Mapping[str, Sequence[float | None]]


def measure(
    heuristics: Sequence[Heuristic],
    prompts: Sequence[PromptRow],
    answers: Mapping[str, Sequence[AnswerRecord]],
) -> list[Measured]:
    """Every heuristic on every answer, then tokens and the share that ended by itself.

    A heuristic that applies to no answer of anybody is left out.
    """
    found = []
    for heuristic in heuristics:
        values = {
            name: [
                heuristic.score(row.text, record.text, row.facts)
                for row, record in zip(prompts, records, strict=True)
            ]
            for name, records in answers.items()
        }
        if any(value is not None for column in values.values() for value in column):
            found.append(Measured(heuristic.name, heuristic.direction, heuristic.digits, values))
    tokens = {name: [float(r.tokens) for r in records] for name, records in answers.items()}
    ended = {name: [float(r.finished) for r in records] for name, records in answers.items()}
    return [
        *found,
        Measured("tokens", "neutral", 1, tokens),
        Measured("ended by itself", "higher", 3, ended),
    ]


def metric_record(measured: Measured, versus: tuple[str, str], seed: int) -> dict[str, Any]:
    """The row of a metric as JSON values.

    `means` and `counts` of the prompts it applies to, by contestant; `difference` is the second of `versus`
    less the first over the prompts where both have a value (None if there are none), with its interval;
    `reading` says what that means: better, worse, unclear, same, or "" where neither way is better.
    """
    columns = {
        name: [value for value in values if value is not None] for name, values in measured.values.items()
    }
    pairs = zip(*(measured.values[name] for name in versus), strict=True)
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    found = None
    if both:
        found = paired_difference([a for a, _ in both], [b for _, b in both], seed=seed)
    return {
        "name": measured.name,
        "direction": measured.direction,
        "digits": measured.digits,
        "means": {n: rounded(sum(c) / len(c)) if c else None for n, c in columns.items()},
        "counts": {name: len(column) for name, column in columns.items()},
        "difference": None if found is None else {**estimate_record(found), "prompts": len(both)},
        "reading": reading(found, measured.direction),
    }


def reading(difference: Estimate | None, direction: Direction) -> str:
    """Whether a difference is better or worse beyond its interval; same: equal in every resample."""
    if direction == "neutral":
        return ""
    if difference is not None and difference.value == difference.low == difference.high == 0:
        return "same"
    if difference is None or not difference.excludes(0.0):
        return "unclear"
    return "better" if (difference.value > 0) == (direction == "higher") else "worse"


def estimate_record(estimate: Estimate) -> dict[str, float | None]:
    """An estimate as JSON values."""
    return {name: rounded(getattr(estimate, name)) for name in ("value", "low", "high")}


def rounded(value: float | None) -> float | None:
    """To DIGITS after the point; a negative zero becomes zero."""
    return None if value is None else round(value, DIGITS) + 0.0
