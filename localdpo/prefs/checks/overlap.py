"""Prompts of the data that are prompts of validation or evaluation too, word for word or nearly."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from localdpo.core.errors import UserError
from localdpo.core.text import excerpt
from localdpo.data.rows import InvalidRow, Skipped, read_rows
from localdpo.data.sources import open_source
from localdpo.prefs.checks.base import (
    Check,
    CheckSettings,
    Chunk,
    Family,
    Finding,
    flagged_pairs,
    prompt_texts,
)
from localdpo.prefs.shingles import BANDS, Hashes, Words, band_keys, signatures

# GPT-3's contamination study looks for runs of 13 words in common (arXiv 2005.14165, appendix C).
RUN_WORDS = 13
# A run of so many words that two evaluation prompts have is taken for a template's.
TEMPLATE_WORDS = 5
# rapidfuzz's ratio (0 to 100) from which on two prompts are the same with small changes.
SAME_RATIO = 90.0
# Prompts of the evaluation that one prompt is compared with, at most.
CANDIDATES = 8
_NUMBERS = re.compile(r"\d+")
_ADVICE = "remove these rows, or evaluate on other prompts: figures on prompts seen in training flatter"

EXACT = Check("overlap-exact", "error", "a prompt of the evaluation, word for word", _ADVICE, drops=True)
NORMALISED = Check(
    "overlap-normalised",
    "error",
    "a prompt of the evaluation but for case and punctuation",
    _ADVICE,
    drops=True,
)
NGRAM = Check(
    "overlap-13-gram", "warning", f"{RUN_WORDS} words in a row of a prompt of the evaluation", _ADVICE
)
FUZZY = Check("overlap-fuzzy", "warning", "nearly a prompt of the evaluation", _ADVICE)


def evaluation_prompts(sources: Sequence[str]) -> dict[str, str]:
    """The prompts of validation and evaluation sets of any format, each with where it is first: `file:row`.

    Rows that cannot be read are skipped. Raises UserError for a source that does not exist, or without a
    prompt.
    """
    prompts: dict[str, str] = {}
    for name in sources:
        source = open_source(name)
        own = [
            (prompt_texts(row.result.prompt)[1], f"{source.label}:{row.rows[0] + 1}")
            for row in read_rows(source, "prompts")
            if not isinstance(row.result, InvalidRow | Skipped)
        ]
        if not own:
            raise UserError(f"{name}: no prompts in it to compare with; expected a column prompt")
        for text, where in own:
            prompts.setdefault(text, where)
    return prompts


class Overlap(Family):
    """The prompts to look for, indexed in four ways."""

    checks: ClassVar[tuple[Check, ...]] = (EXACT, NORMALISED, NGRAM, FUZZY)

    @classmethod
    def from_settings(cls, settings: CheckSettings, not_checked: list[str]) -> Self | None:
        if settings.against:
            return cls(evaluation_prompts(settings.against))
        not_checked.append(
            "overlap with evaluation prompts: give --against DATA, or --recipe FILE with data.valid"
        )
        return None

    def __init__(self, prompts: Mapping[str, str]) -> None:
        self.prompts = list(prompts.items())
        self._exact = {text: i for i, (text, _) in enumerate(self.prompts)}
        words = Words([text for text, _ in self.prompts])
        self._normalised = {key: i for i, key in enumerate(words.keys()) if key}
        self._runs, self._run_prompts = _unshared_runs(words)
        self._bands = _bands(words)
        self._notes: dict[str, dict[int, str]] = {check.name: {} for check in self.checks}

    def add(self, chunk: Chunk) -> None:
        """Look for each prompt; the strongest kind of overlap is what counts."""
        keys = chunk.subject_words.keys()
        runs = self._runs_in(chunk.subject_words)
        near = self._near(chunk)
        for i, key in enumerate(keys):
            exact = self._exact.get(chunk.prompts[i], self._exact.get(chunk.subjects[i]))
            ways = (exact, self._normalised.get(key) if key else None, runs.get(i), near.get(i))
            for check, index in zip(self.checks, ways, strict=True):
                if index is not None:
                    text, where = self.prompts[index]
                    self._notes[check.name][chunk.start + i] = f"{where}: {excerpt(text)}"
                    break

    def finish(self, total: int) -> Iterator[Finding]:
        for check in self.checks:
            yield from flagged_pairs(check, total, self._notes[check.name])

    def facts(self) -> dict[str, Any]:
        return {"evaluation_prompts": len(self.prompts)}

    def _runs_in(self, words: Words) -> dict[int, int]:
        """Text -> the first evaluation prompt that it shares a run of words with."""
        hashes, starts = words.runs(RUN_WORDS)
        if not len(self._runs) or not len(hashes):
            return {}
        indices = np.minimum(np.searchsorted(self._runs, hashes), len(self._runs) - 1)
        hits = np.flatnonzero(self._runs[indices] == hashes)[::-1]
        return {int(words.owner[starts[hit]]): int(self._run_prompts[indices[hit]]) for hit in hits}

    def _near(self, chunk: Chunk) -> dict[int, int]:
        """Text -> the evaluation prompt that it nearly is: candidates by MinHash, decided by rapidfuzz."""
        from rapidfuzz import fuzz

        table, texts = signatures(chunk.subject_words)
        candidates: dict[int, list[int]] = defaultdict(list)
        for band in range(BANDS):
            for text, key in zip(texts.tolist(), band_keys(table, band).tolist(), strict=True):
                candidates[text] += self._bands[band].get(key, ())
        near = {}
        for text, options in candidates.items():
            words = chunk.subjects[text]
            for option in dict.fromkeys(options[:CANDIDATES]):
                other, _ = self.prompts[option]
                # Other numbers make another question ("What is 17 * 23?"), however alike the rest is.
                if (
                    _NUMBERS.findall(words) == _NUMBERS.findall(other)
                    and fuzz.ratio(words, other) >= SAME_RATIO
                ):
                    near[text] = option
                    break
        return near


def _unshared_runs(words: Words) -> tuple[Hashes, np.ndarray]:
    """Sorted runs of words that a single prompt holds, with the prompt: a run in several is a template's.

    A run of which more than half belongs to a template is dropped too: the end of a template and the first
    word after it say little about the question.
    """
    hashes, starts = words.runs(RUN_WORDS)
    before = np.append(0, np.cumsum(_template_words(words)))
    own = before[starts + RUN_WORDS] - before[starts] <= RUN_WORDS // 2
    hashes, owner = hashes[own], words.owner[starts[own]]
    order = np.lexsort((owner, hashes))
    hashes, owner = hashes[order], owner[order]
    values, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    alone = owner[first] == owner[first + counts - 1] if len(values) else np.zeros(0, np.bool_)
    return values[alone], owner[first][alone]


def _template_words(words: Words) -> np.ndarray:
    """bool[W]: whether a word is part of a run of TEMPLATE_WORDS that another prompt has as well."""
    hashes, starts = words.runs(TEMPLATE_WORDS)
    owner = words.owner[starts]
    order = np.lexsort((owner, hashes))
    _, first, inverse, counts = np.unique(
        hashes[order], return_index=True, return_inverse=True, return_counts=True
    )
    sorted_owner = owner[order]
    shared = (sorted_owner[first] != sorted_owner[first + counts - 1])[inverse] if len(first) else inverse > 0
    covered = np.zeros(len(words.hashes), np.bool_)
    for step in range(TEMPLATE_WORDS):
        covered[starts[order][shared] + step] = True
    return covered


def _bands(words: Words) -> list[dict[int, list[int]]]:
    """For each band, its keys and the prompts that have them (a few of many)."""
    table, texts = signatures(words)
    bands: list[dict[int, list[int]]] = []
    for band in range(BANDS):
        index: dict[int, list[int]] = defaultdict(list)
        for text, key in zip(texts.tolist(), band_keys(table, band).tolist(), strict=True):
            if len(index[key]) < CANDIDATES:
                index[key].append(text)
        bands.append(dict(index))
    return bands
