"""What the texts look like: marks left in them, and sides that differ in markdown, language or script.

What differs between chosen and rejected answers is what the model learns first.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, ClassVar, Self

import numpy as np

from localdpo.core.text import have
from localdpo.data.messages import ASSISTANT, HUMAN
from localdpo.prefs.checks.base import (
    Check,
    CheckSettings,
    Chunk,
    Family,
    Finding,
    flagged_pairs,
    share,
)

# As the templates of well-known models write them.
MARKERS = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|begin_of_text|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|end|>"),
    *("<|user|>", "<|assistant|>", "<|system|>", "<start_of_turn>", "<end_of_turn>"),
    *("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "</s>", "<eos>", "<bos>", "<extra_id_1>"),
    *("### Instruction:", "### Response:", HUMAN, ASSISTANT),
)
# Each of MARKERS holds one of these.
_SIGNS = ("<", "[", "### ", "\n\nHuman", "\n\nAssistant")

TEMPLATE = Check(
    "template-markers",
    "warning",
    "a mark of a chat template within the text",
    "cut the text at the mark, or remove the row: the model would learn to write it",
)
SPECIAL = Check(
    "special-tokens",
    "error",
    "a special token of this tokenizer within the text",
    "cut the text there, or remove the row: it becomes a control token in the middle of an answer",
    drops=True,
)


class Markers(Family):
    """Looks for marks in prompts and answers; `special` are the tokenizer's own tokens, if there is one."""

    checks: ClassVar[tuple[Check, ...]] = (SPECIAL, TEMPLATE)

    @classmethod
    def from_settings(cls, settings: CheckSettings, not_checked: list[str]) -> Self:
        return cls(list(settings.tokenizer.get_added_vocab()) if settings.tokenizer is not None else ())

    def __init__(self, special: Sequence[str] = ()) -> None:
        own = [token for token in dict.fromkeys(special) if len(token.strip()) > 1]
        marks = [(mark, SPECIAL) for mark in own] + [(mark, TEMPLATE) for mark in MARKERS if mark not in own]
        self._marked = [(mark, check) for mark, check in marks if any(sign in mark for sign in _SIGNS)]
        self._unmarked = [(mark, check) for mark, check in marks if (mark, check) not in self._marked]
        self._notes: dict[str, dict[int, str]] = {check.name: {} for check in self.checks}

    def add(self, chunk: Chunk) -> None:
        """Find the first mark of each pair, special tokens before the others."""
        sides = zip(chunk.chosen, chunk.rejected, chunk.prompts, strict=True)
        for number, texts in enumerate(sides, chunk.start):
            hits: list[tuple[str, Check, str]] = []
            for name, text in zip(("chosen", "rejected", "prompt"), texts, strict=True):
                # Nearly every mark holds one of a few signs, and most texts hold none of them.
                marks = self._unmarked + (self._marked if any(sign in text for sign in _SIGNS) else [])
                hits += [(mark, check, name) for mark, check in marks if mark in text]
            if hits:
                mark, check, name = min(hits, key=lambda hit: hit[1] is not SPECIAL)
                self._notes[check.name][number] = f"{mark.strip()} in {name}"

    def finish(self, total: int) -> Iterator[Finding]:
        for check in self.checks:
            yield from flagged_pairs(check, total, self._notes[check.name])


# --- skew ------------------------------------------------------------------------------------------------

# Points of share, and standard errors of a difference of two shares, that a skew must reach.
SKEW = 0.15
SKEW_ERRORS = 3.0
ENOUGH_PAIRS = 50
# Characters that tell a script and a language; common words needed to name a language.
LOOKED_AT = 400
ENOUGH_WORDS = 4
TWICE = 2
LATIN = "Latin"

MARKDOWN = Check(
    "markdown-skew",
    "warning",
    "one side has far more markdown than the other",
    "look at whether the preference is about content; add pairs with the same layout on both sides",
    rows=False,
)
LANGUAGE = Check(
    "language-mismatch",
    "warning",
    "chosen and rejected are in different languages or scripts",
    "remove them, unless the language is what the preference is about",
)

_FEATURES: dict[str, tuple[str, ...]] = {
    "bold": ("**",),
    "code": ("```",),
    "list": ("\n- ", "\n* ", "\n1. "),
    "heading": ("\n# ", "\n## ", "\n### "),
    "table": ("\n|",),
}
# Frequent words that the other languages of the table do not have.
_COMMON: dict[str, str] = {
    "English": "the and of is that this with you are was have not they which would",
    "German": "der und ist nicht das mit auch eine einen sich werden wird sind oder wenn",
    "French": "les est une dans pour pas qui vous avec sont cette mais nous aux ces",
    "Spanish": "los las una por del con para como pero muy este esta estos sus tambien",
    "Italian": "che di il per una sono della nel gli anche delle alla essere questo dei",
    "Portuguese": "não uma os com são mais dos pela seu você muito isso também ao nos",
    "Dutch": "het een van niet zijn voor met ook wordt deze naar maar aan kunnen worden",
}
_LANGUAGE_OF = {
    word: language
    for language, words in _COMMON.items()
    for word in words.split()
    if sum(word in other.split() for other in _COMMON.values()) == 1
}


class Skew(Family):
    """Features of the answers, side by side."""

    checks: ClassVar[tuple[Check, ...]] = (MARKDOWN, LANGUAGE)

    def __init__(self) -> None:
        self._markdown: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        self._languages: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
        self._mismatches: dict[int, str] = {}

    def add(self, chunk: Chunk) -> None:
        for number, texts in enumerate(zip(chunk.chosen, chunk.rejected, strict=True), chunk.start):
            languages = []
            for side, text in enumerate(texts):
                self._markdown[side].update(markdown_of(text))
                languages.append(language_of(text))
                self._languages[side][languages[-1] or "unknown"] += 1
            chosen, rejected = languages
            if differ(chosen, rejected):
                self._mismatches[number] = f"chosen {chosen}, rejected {rejected}"

    def finish(self, total: int) -> Iterator[Finding]:
        skewed = [name for name in ("any", *_FEATURES) if self._is_skewed(name, total)]
        if skewed:
            words = ", ".join(
                f"{name} {self._share(0, name):.0%} of chosen, {self._share(1, name):.0%} of rejected answers"
                for name in skewed
            )
            count = max(abs(self._markdown[0][name] - self._markdown[1][name]) for name in skewed)
            yield Finding(MARKDOWN, count, total, words)
        message = f"{have(len(self._mismatches), 'pair')} answers in two languages or scripts"
        yield from flagged_pairs(LANGUAGE, total, self._mismatches, message)

    def facts(self) -> dict[str, Any]:
        return {
            "markdown": {
                name: [round(self._share(side, name), 4) for side in (0, 1)] for name in ("any", *_FEATURES)
            },
            "languages": [dict(counts.most_common(8)) for counts in self._languages],
        }

    def _share(self, side: int, name: str) -> float:
        return share(self._markdown[side][name], self._languages[side].total())

    def _is_skewed(self, name: str, total: int) -> bool:
        first, second = self._share(0, name), self._share(1, name)
        mean = (first + second) / 2
        error = float(np.sqrt(2 * mean * (1 - mean) / total))
        return total >= ENOUGH_PAIRS and abs(first - second) > max(SKEW, SKEW_ERRORS * error)


def markdown_of(text: str) -> list[str]:
    """The kinds of markdown in a text, and "any" if there is one."""
    lines = f"\n{text}"
    found = [name for name, marks in _FEATURES.items() if any(mark in lines for mark in marks)]
    return ["any", *found] if found else []


def language_of(text: str) -> str | None:
    """The language of a text in Latin script, the script of another, None for no letters or a mixture.

    A guess from the first characters: a script has most of the letters, a language has most of the
    frequent words, twice as many as the next; where none has, it is LATIN.
    """
    start = text[:LOOKED_AT]
    if (script := _script(start)) != LATIN:
        return script
    hits = Counter(map(_LANGUAGE_OF.get, start.lower().split()))
    hits.pop(None, None)
    best = hits.most_common(2)
    if not best or best[0][1] < ENOUGH_WORDS:
        return LATIN
    clear = len(best) == 1 or best[0][1] >= TWICE * best[1][1]
    return best[0][0] if clear else LATIN


def differ(first: str | None, second: str | None) -> bool:
    """Surely two languages or scripts; an unclear one in Latin script may be any of it."""
    if first is None or second is None or first == second:
        return False
    return LATIN not in (first, second) or not {first, second} <= {LATIN, *_COMMON}


def _script(text: str) -> str | None:
    """The script of most letters; None for none, and for a mixture."""
    if text.isascii():
        return LATIN if any(map(str.isalpha, text)) else None
    counts = Counter(_script_of(letter) for letter in text if letter.isalpha())
    return next((name for name, count in counts.items() if count > 0.5 * counts.total()), None)


@lru_cache(maxsize=4096)
def _script_of(letter: str) -> str:
    """The first word of a letter's Unicode name is its script; Han and kana stand for one."""
    word = unicodedata.name(letter, "OTHER").split()[0].split("-")[0]
    return "Chinese or Japanese" if word in ("CJK", "HIRAGANA", "KATAKANA") else word.capitalize()
