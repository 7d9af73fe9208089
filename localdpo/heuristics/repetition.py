"""How much an answer repeats itself: the share of its n-grams that were there before.

    1 - |different n-grams| / |n-grams|

over words, as seq-rep-n of Welleck et al. (2020), "Neural Text Generation with Unlikelihood Training".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from localdpo.heuristics.base import Heuristic, Kind, Options

DEFAULT_N: Final = 4


def repetition(answer: str, n: int) -> float | None:
    """The share in [0, 1), case aside; None for an answer of fewer than n words."""
    found = answer.casefold().split()
    grams = [tuple(found[start : start + n]) for start in range(len(found) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None


def standard() -> Heuristic:
    """Of four words."""
    return build("repetition", Options({}))


def build(name: str, options: Options) -> Heuristic:
    """Options: `n`, the words of an n-gram (4)."""
    n = options.whole("n", DEFAULT_N)

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float | None:
        return repetition(answer, n)

    return Heuristic(name, options.better("lower"), score)


KIND: Final = Kind("repetition", build)
