"""How often the model that training would start from already prefers the chosen answer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

from localdpo.data.types import Pair
from localdpo.prefs.columns import share
from localdpo.prefs.findings import Check, Finding, Sample
from localdpo.prefs.rows import Chunk

# Where the reference ranks nearly all pairs right there is little to learn; where it ranks most of them
# wrong, the labels may be swapped. By tokens, so that length does not decide.
SURE, AGAINST = 0.9, 0.3
ENOUGH_PAIRS = 50

ACCURACY = Check(
    "reference-accuracy",
    "warning",
    "the reference ranks nearly all pairs right, or most of them wrong",
    "nearly all right: choose harder pairs; most wrong: look at some pairs, the labels may be swapped",
    rows=False,
)
Score = Callable[[list[Pair]], list[tuple[float, float, int, int]]]
"""From pairs to (log-probability of chosen, of rejected, tokens of chosen, of rejected) of those that fit."""


class Reference:
    """Scores an even sample of the pairs: reservoir sampling, the same for the same data."""

    checks: ClassVar[tuple[Check, ...]] = (ACCURACY,)

    def __init__(self, score: Score, size: int) -> None:
        self._score = score
        self._size = size
        self._sample: list[tuple[int, Pair]] = []
        self._random = random.Random(0)
        self._facts: dict[str, Any] = {}

    def add(self, chunk: Chunk) -> None:
        """Algorithm R: each pair so far is in the sample with the same probability."""
        for place, pair in enumerate(chunk.pairs, chunk.start):
            if len(self._sample) < self._size:
                self._sample.append((place, pair))
            elif (at := self._random.randrange(place + 1)) < self._size:
                self._sample[at] = (place, pair)

    def finish(self) -> Iterator[Finding]:
        """Score the sample."""
        self._sample.sort(key=lambda one: one[0])
        scores = self._score([pair for _, pair in self._sample])
        by_sum = sum(chosen > rejected for chosen, rejected, _, _ in scores)
        by_token = sum(chosen / m > rejected / n for chosen, rejected, m, n in scores)
        count = len(scores)
        self._facts = {
            "reference": {
                "scored": count,
                "accuracy": round(share(by_sum, count), 4),
                "accuracy_per_token": round(share(by_token, count), 4),
            }
        }
        if count >= ENOUGH_PAIRS and not AGAINST <= by_token / count <= SURE:
            message = (
                f"the reference finds the chosen answer likelier, token by token, in {by_token / count:.0%} "
                f"of {count:,} pairs"
            )
            samples = tuple(Sample((place,)) for place, _ in self._sample[:3])
            yield Finding(ACCURACY, by_token, count, message, samples)

    def facts(self) -> dict[str, Any]:
        """Accuracy of the reference by whole answers and by tokens."""
        return self._facts
