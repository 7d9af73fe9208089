"""Whether an answer refuses: 1 when one of some phrases stands near its beginning, else 0.

The limits of it: the phrases are English; a refusal in other words is not seen, and an answer that quotes
such a phrase in its first characters counts as one. Whether refusing was right it does not know: for prompts
that should be refused, set `better: higher`, and for mixed ones `better: neutral`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from localdpo.heuristics.base import Heuristic, Kind, Options

# Refusals come first; further on such words are mostly about something else.
WINDOW: Final = 200
PHRASES: Final = (
    "i can't help", "i cannot help", "i can't assist", "i cannot assist", "i can't provide",
    "i cannot provide", "i can't do that", "i cannot do that", "i can't answer", "i cannot answer",
    "i can't fulfill", "i cannot fulfill", "i can't comply", "i cannot comply", "i can't discuss",
    "i cannot discuss", "i can't create", "i cannot create", "i'm unable to", "i am unable to",
    "i'm not able to", "i am not able to", "i won't be able to", "i will not be able to",
    "i must decline", "i have to decline", "i won't help", "i will not help", "as an ai",
    "it would be inappropriate", "i'm not comfortable", "i am not comfortable",
)  # fmt: skip
_APOSTROPHES = str.maketrans({"\u2019": "'", "\u2018": "'", "\u02bc": "'", "`": "'"})


def plain(text: str) -> str:
    """Lower case, straight apostrophes, one space between words."""
    return " ".join(text.casefold().translate(_APOSTROPHES).split())


def standard() -> Heuristic:
    """With the phrases above."""
    return build("refusal", Options({}))


def build(name: str, options: Options) -> Heuristic:
    """Options: `phrases`, a list to look for instead of the built-in one."""
    phrases = tuple(plain(phrase) for phrase in options.texts("phrases", PHRASES))

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
        start = plain(answer)[:WINDOW]
        return float(any(phrase in start for phrase in phrases))

    return Heuristic(name, options.better("lower"), score)


KIND: Final = Kind("refusal", build)
