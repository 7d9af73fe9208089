"""Rows with several answers to one prompt and what says which is better: scores, a label, an order.

Answers that are equally good make no pair: the row is skipped and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from localdpo.data.fields import (
    RowProblem,
    RowSkip,
    describe,
    number,
    read_list,
    read_number,
    read_options,
    read_side,
    read_text,
    text,
)
from localdpo.data.types import Pair, Side

Record = Mapping[str, Any]
EQUAL = "both answers have the same score"
CLOSE = "the scores of the answers are closer than 2 to 1"
FEW = "fewer than two answers with a score"
# The paper on SHP trains on pairs whose scores are at least 2 to 1; below that the preference is weak.
SHP_RATIO = 2.0
# How data sets call the scores of a pair that is already ordered.
RATINGS: tuple[tuple[str, str], ...] = (
    ("score_chosen", "score_rejected"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
    ("chosen_avg_rating", "rejected_avg_rating"),
    ("rating_chosen", "rating_rejected"),
)


Read = TypeVar("Read")


def unequal(read: Callable[[Record], Read]) -> Callable[[Record], Read]:
    """`read`, for rows that have the scores of both answers besides: equal ones make no pair.

    A score that is null says nothing, and the row is kept.
    """

    def checked(record: Record) -> Read:
        found = read(record)
        for names in RATINGS:
            scores = [number(record[name], name) for name in names if record.get(name) is not None]
            if len(scores) == 2 and scores[0] == scores[1]:
                raise RowSkip(EQUAL)
        return found

    return checked


def contradicts(record: Record) -> bool:
    """Whether the scores that a row has besides say that the rejected answer is the better one."""
    for names in RATINGS:
        scores = [record.get(name) for name in names]
        if all(isinstance(score, int | float) and not isinstance(score, bool) for score in scores):
            return bool(scores[0] < scores[1])  # type: ignore[operator]
    return False


def shp(record: Record) -> Pair:
    """Stanford Human Preferences: `labels` 1 prefers A. Pairs below SHP_RATIO are skipped."""
    prompt = read_text(record, "history")
    answers = [read_text(record, "human_ref_A"), read_text(record, "human_ref_B")]
    label = read_number(record, "labels")
    if label not in (0.0, 1.0):
        raise RowProblem("labels", f"expected 1 (A is preferred) or 0 (B), got {label:g}")
    if read_number(record, "score_ratio") < SHP_RATIO:
        raise RowSkip(CLOSE)
    return _ordered(prompt, answers, first=label == 1.0, record=record)


def signed(prompt: str, first: str, second: str, preference: str) -> Callable[[Record], Pair]:
    """HelpSteer's preferences: below 0 the first answer is better, above 0 the second."""

    def read(record: Record) -> Pair:
        asked = read_side(record, prompt)
        answers = [read_text(record, first), read_text(record, second)]
        value = read_number(record, preference)
        if value == 0:
            raise RowSkip(EQUAL)
        return _ordered(asked, answers, first=value < 0, record=record)

    return read


def _ordered(prompt: Side, answers: Sequence[str], *, first: bool, record: Record) -> Pair:
    chosen, rejected = answers if first else reversed(answers)
    return Pair(prompt, chosen, rejected, **read_options(record))


def completions(record: Record) -> Pair:
    """UltraFeedback before it was made into pairs: the best completion against the worst.

    Of four answers none can lie below mean - 2 sd (sqrt(3) sd is the limit), which is the place that
    arXiv 2502.16825 advises, so the worst is the nearest to it.
    """
    prompt = read_text(record, "instruction")
    scored: list[tuple[float, str]] = []
    for i, entry in enumerate(read_list(record, "completions")):
        name = f"completions[{i}]"
        if not isinstance(entry, dict):
            raise RowProblem(
                name, f"expected an object with response and overall_score, got {describe(entry)}"
            )
        answer = text(entry.get("response"), f"{name}.response")
        if entry.get("overall_score") is not None:
            scored.append((number(entry["overall_score"], f"{name}.overall_score"), answer))
    return _extremes(prompt, scored, record)


def generations(prompt: str, ratings: str) -> Callable[[Record], Pair]:
    """distilabel's lists: `generations` and a rating of each, the best against the worst."""

    def read(record: Record) -> Pair:
        asked = read_text(record, prompt)
        answers, values = read_list(record, "generations"), read_list(record, ratings)
        if len(answers) != len(values):
            raise RowProblem(ratings, f"expected {len(answers)}, one for each generation, got {len(values)}")
        scored = [
            (number(value, f"{ratings}[{i}]"), text(answer, f"generations[{i}]"))
            for i, (answer, value) in enumerate(zip(answers, values, strict=True))
            if value is not None and answer is not None
        ]
        return _extremes(asked, scored, record)

    return read


def _extremes(prompt: Side, scored: Sequence[tuple[float, str]], record: Record) -> Pair:
    """The first of the best against the first of the worst."""
    if len(scored) < 2:
        raise RowSkip(FEW)
    best, worst = max(scored, key=lambda one: one[0]), min(scored, key=lambda one: one[0])
    if best[0] == worst[0]:
        raise RowSkip(EQUAL)
    return Pair(prompt, best[1], worst[1], **read_options(record))


def responses(record: Record) -> list[Pair]:
    """The rows of Mitchell's reference implementation: answers, and pairs of their places, better first."""
    prompt = read_side(record, "prompt")
    answers = [text(value, f"responses[{i}]") for i, value in enumerate(read_list(record, "responses"))]
    options = read_options(record)
    found = []
    for k, places in enumerate(read_list(record, "pairs")):
        name = f"pairs[{k}]"
        if not isinstance(places, list) or len(places) != 2:
            raise RowProblem(name, f"expected two places in responses, got {describe(places)}")
        better, worse = (_place(place, len(answers), name) for place in places)
        found.append(Pair(prompt, answers[better], answers[worse], **options))
    if not found:
        raise RowSkip(FEW)
    return found


def _place(value: Any, count: int, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
        raise RowProblem(name, f"expected a place from 0 to {count - 1}, got {describe(value)}")
    return value
