"""How much data there is, how long it is, and whether the longer answer is the better one too often."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

from localdpo.prefs.columns import Column, difference_histogram, hashes, share, summary
from localdpo.prefs.findings import Check, Finding, Sample, at_rows
from localdpo.prefs.rows import Chunk

# Above 60% of pairs the policy is likely to learn length; below this many pairs the share says little.
BIASED_SHARE = 0.6
ENOUGH_PAIRS = 50

EMPTY = Check(
    "empty-answers",
    "error",
    "an answer without a word",
    "take them out: an empty answer teaches the model to stop at once, or to avoid stopping",
    drops=True,
)
EMPTY_PROMPT = Check(
    "empty-prompts", "warning", "a prompt without a word", "take them out, unless they are meant", drops=True
)
LENGTH = Check(
    "length-bias",
    "warning",
    "one side is the longer one too often",
    "add pairs whose chosen answer is the shorter one, or train with loss.type: r_dpo, simpo or "
    "sigmoid_norm, or with loss.ld_alpha below 1; judge results with length control",
    rows=False,
)


class Sizes:
    """Characters of prompts and answers."""

    checks: ClassVar[tuple[Check, ...]] = (EMPTY, EMPTY_PROMPT, LENGTH)

    def __init__(self) -> None:
        self._lengths = Column(np.int32)
        self._prompts = Column()
        self._empty: list[int] = []
        self._no_prompt: list[int] = []
        self._notes: list[str] = []

    def add(self, chunk: Chunk) -> None:
        """Count characters; remember the empty ones."""
        sides = zip(chunk.prompts, chunk.chosen, chunk.rejected, strict=True)
        for place, (prompt, chosen, rejected) in enumerate(sides, chunk.start):
            empty = [name for name, text in (("chosen", chosen), ("rejected", rejected)) if not text.strip()]
            if empty:
                self._empty.append(place)
                self._notes.append(" and ".join(empty))
            if not prompt.strip():
                self._no_prompt.append(place)
        texts = (chunk.prompts, chunk.chosen, chunk.rejected)
        self._lengths.add(np.array([[len(text) for text in side] for side in texts]).T)
        self._prompts.add(hashes(chunk.prompts))

    def finish(self) -> Iterator[Finding]:
        """Empty sides, and the share of pairs whose chosen answer is longer."""
        table = self._table()
        yield from at_rows(EMPTY, len(table), self._empty, "an answer is empty", self._notes)
        yield from at_rows(EMPTY_PROMPT, len(table), self._no_prompt, "the prompt is empty")
        yield from length_bias(table[:, 1], table[:, 2], "characters")

    def facts(self) -> dict[str, Any]:
        """Counts, and characters of each side."""
        table = self._table()
        names = ("prompt", "chosen", "rejected")
        return {
            "pairs": len(table),
            "prompts": len(np.unique(self._prompts.values)),
            "characters": {name: summary(table[:, i]) for i, name in enumerate(names)},
            "chosen_longer": longer_facts(table[:, 1], table[:, 2], "characters"),
        }

    def _table(self) -> np.ndarray:
        return self._lengths.values.reshape(-1, 3)


def longer_facts(chosen: np.ndarray, rejected: np.ndarray, unit: str) -> dict[str, Any]:
    """How often the chosen answer is the longer one, of the pairs whose lengths differ, and by how much."""
    difference = chosen.astype(np.int64) - rejected
    longer, shorter = int((difference > 0).sum()), int((difference < 0).sum())
    return {
        "unit": unit,
        "longer": longer,
        "shorter": shorter,
        "equal": len(difference) - longer - shorter,
        "share": round(share(longer, longer + shorter), 4),
        "mean_difference": round(float(difference.mean()), 2) if len(difference) else 0.0,
        "histogram": difference_histogram(difference),
    }


def length_bias(chosen: np.ndarray, rejected: np.ndarray, unit: str) -> Iterator[Finding]:
    """The finding LENGTH when either side is the longer one in more than BIASED_SHARE of the pairs."""
    facts = longer_facts(chosen, rejected, unit)
    for side, count in (("chosen", facts["longer"]), ("rejected", facts["shorter"])):
        unequal = facts["longer"] + facts["shorter"]
        if unequal >= ENOUGH_PAIRS and share(count, unequal) > BIASED_SHARE:
            message = (
                f"the {side} answer is the longer one in {share(count, unequal):.0%} of the pairs of unequal "
                f"length ({facts['mean_difference']:+.0f} {unit} on average)"
            )
            difference = (chosen.astype(np.int64) - rejected) * (1 if side == "chosen" else -1)
            worst = np.argsort(-difference, kind="stable")[:3]
            samples = tuple(Sample((int(i),), f"{difference[i]:+,} {unit}") for i in worst)
            yield Finding(LENGTH, count, unequal, message, samples)
