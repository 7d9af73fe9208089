"""From candidates and verdicts to pairs: which answers can be judged, and which two make a pair. Pure."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from localdpo.judging.base import Verdict
from localdpo.judging.pairwise import PairVerdict
from localdpo.records.answers import AnswerRecord

EMPTY: Final = "empty"
CUT: Final = "cut at the limit of tokens"
SAME: Final = "the same text as another"
SAME_WHEN_CUT: Final = "the same as another after truncation"
TOO_FEW: Final = "fewer than two usable answers"
NO_VERDICT: Final = "no verdict in one of the orders"
FLIPPED: Final = "the two orders disagree"
TIE: Final = "a tie in both orders"
CONTRADICTED: Final = "the scores do not say the same as the choice"
UNSCORED: Final = "fewer than two answers with a score"
ALL_EQUAL: Final = "all scores are equal"
NOT_REVISED: Final = "the judge prefers the answer before its revision"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Two candidates of a prompt, by name, and their scores if they have any."""

    prompt: int
    chosen: str
    rejected: str
    scores: tuple[float, float] | None = None


def usable(answers: Mapping[str, AnswerRecord]) -> tuple[list[str], Counter[str]]:
    """The candidates of one prompt that can be judged, by name in their order; the others by reason."""
    kept: list[str] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for name, answer in answers.items():
        text = answer.text.strip()
        reason = EMPTY if not text else CUT if not answer.finished else SAME if text in seen else None
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add(text)
        kept.append(name)
    return kept, dropped


def by_choice(prompt: int, names: tuple[str, str], verdict: PairVerdict) -> Chosen | str:
    """The pair that two verdicts of two orders make of `names`, or why there is none."""
    if not verdict.valid:
        return NO_VERDICT
    if verdict.flipped:
        return FLIPPED
    if verdict.score == 0.5:
        return TIE
    first, second = names if verdict.score == 1.0 else names[::-1]
    return Chosen(prompt, first, second)


def with_scores(pair: Chosen, chosen: Verdict, rejected: Verdict) -> Chosen | str:
    """The pair with the scores of its answers, or why it is dropped: they must point the same way."""
    if chosen.score is None or rejected.score is None:
        return UNSCORED
    if chosen.score <= rejected.score:
        return CONTRADICTED
    return Chosen(pair.prompt, pair.chosen, pair.rejected, (chosen.score, rejected.score))


def by_scores(prompt: int, scores: Mapping[str, float | None]) -> Chosen | str:
    """The pair that scores make of candidates (name -> score, None without one), or why there is none."""
    known = {name: score for name, score in scores.items() if score is not None}
    if len(known) < 2:
        return UNSCORED
    names, values = list(known), list(known.values())
    places = best_and_low(values)
    if places is None:
        return ALL_EQUAL
    best, low = places
    return Chosen(prompt, names[best], names[low], (values[best], values[low]))


def best_and_low(scores: Sequence[float]) -> tuple[int, int] | None:
    """Places of the best score and of the lower one that is nearest to mean - 2 sd; None if all are equal.

    After arXiv 2502.16825: of many samples the very worst teaches less than one two (population) standard
    deviations below the mean. Of equals the first is taken, of two equally near the lower one.
    """
    best = max(range(len(scores)), key=lambda place: (scores[place], -place))
    target = statistics.fmean(scores) - 2 * statistics.pstdev(scores)
    lower = [place for place, score in enumerate(scores) if score < scores[best]]
    if not lower:
        return None
    return best, min(lower, key=lambda place: (abs(scores[place] - target), scores[place], place))


def split_by_prompt(prompts: Sequence[str], wanted: int, seed: int) -> list[bool]:
    """For each pair, by the id of its prompt, whether it is held out; no prompt is on both sides.

    Prompts are taken in an order drawn by the seed, so that more pairs of other prompts change little; at
    most `wanted` pairs are held out, and exactly so many when no prompt comes twice.
    """
    pairs = Counter(prompts)
    held: set[str] = set()
    left = wanted
    for name in sorted(pairs, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
        if pairs[name] <= left:
            held.add(name)
            left -= pairs[name]
    return [name in held for name in prompts]
