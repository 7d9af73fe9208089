"""Pairs, prompts and answers that stand in the data more than once, exactly or nearly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from localdpo.prefs.columns import Column, hashes
from localdpo.prefs.findings import EXAMPLES, Check, Finding, Sample
from localdpo.prefs.rows import Chunk
from localdpo.prefs.shingles import BANDS, SIGNATURE, Hashes, Words, band_keys, signatures

# Texts with fewer words than this repeat by chance ("Yes.", "I do not know.").
ENOUGH_WORDS = 8
# Share of word triples in common (Jaccard, estimated from the signatures) from which on two texts count as
# nearly the same: of 30 words one may be another.
SIMILAR = 0.7
# Neighbours that a text is compared with where many share a band: the cost stays linear.
NEIGHBOURS = 4
# A word triple in more than this share of the first texts is a template's, not the text's.
TEMPLATE_SHARE = 0.05
ENOUGH_TEXTS = 50

PAIRS = Check(
    "duplicate-pairs",
    "warning",
    "the same prompt, chosen and rejected answer once more",
    "take out all but the first: a repeated pair counts twice, and may be on both sides of a split",
    drops=True,
)
PROMPTS = Check(
    "repeated-prompts",
    "info",
    "a prompt that an earlier pair has too",
    "fine if several pairs for a prompt are meant; the split into train and valid goes by prompt",
)
ANSWERS = Check(
    "repeated-answers",
    "info",
    "an answer that stands under another prompt too",
    "look at them: one stock answer to many prompts is often a refusal or a failed generation",
)
NEAR_PROMPTS = Check(
    "near-duplicate-prompts",
    "info",
    "a prompt that is nearly an earlier one",
    "take out what says the same twice, and keep one group on one side of a split",
)
NEAR_ANSWERS = Check(
    "near-duplicate-answers",
    "info",
    "an answer that is nearly one to another prompt",
    "look at them: answers from a template teach the template",
)


class Duplicates:
    """Hashes of all texts, and MinHash signatures of prompts and answers (128 bytes each)."""

    checks: ClassVar[tuple[Check, ...]] = (PAIRS, PROMPTS, ANSWERS, NEAR_PROMPTS, NEAR_ANSWERS)

    def __init__(self) -> None:
        self._pairs, self._prompts = Column(), Column()
        self._answers = Column()
        self._long = Column(np.bool_)
        self._near_prompts, self._near_answers = _Near(), _Near()

    def add(self, chunk: Chunk) -> None:
        """Hash and sign the texts of a chunk."""
        texts = list(zip(chunk.prompts, chunk.chosen, chunk.rejected, strict=True))
        self._pairs.add(hashes(texts))
        self._prompts.add(hashes(chunk.prompts))
        answers = [text for pair in zip(chunk.chosen, chunk.rejected, strict=True) for text in pair]
        self._answers.add(hashes(answers))
        words = Words(answers)
        counts = np.bincount(words.owner, minlength=len(answers))
        self._long.add(counts >= ENOUGH_WORDS)
        self._near_prompts.add(chunk.subject_words, chunk.start)
        self._near_answers.add(words, 2 * chunk.start)

    def finish(self) -> Iterator[Finding]:
        """What repeats: pairs, then prompts and answers, exactly and nearly."""
        prompts = self._prompts.values
        total = len(prompts)
        again, first = _earlier(self._pairs.values)
        yield from _finding(PAIRS, total, again, first, "{n} pairs stand in the data already")
        repeats, first = _earlier(prompts)
        yield from _finding(PROMPTS, total, repeats, first, "{n} pairs have a prompt that came before")
        answers, long = self._answers.values, self._long.values
        other, first = _under_other_prompt(answers, long, prompts)
        yield from _finding(ANSWERS, total, other, first, "{n} pairs have an answer of another prompt")
        near, first = self._near_prompts.find(prompts)
        yield from _finding(NEAR_PROMPTS, total, near, first, "{n} pairs have nearly the prompt of another")
        near, first = self._near_answers.find(answers)
        apart = prompts[near // 2] != prompts[first // 2]
        near, first = _one_each(near[apart] // 2, first[apart] // 2)
        yield from _finding(
            NEAR_ANSWERS, total, near, first, "{n} pairs have nearly an answer of another prompt"
        )

    def facts(self) -> dict[str, Any]:
        """Nothing besides the findings."""
        return {}


Places = NDArray[np.int64]


class _Near:
    """Signatures of texts, and which of them are nearly the same."""

    def __init__(self) -> None:
        self._table = Column(np.uint32)
        self._texts = Column()
        self._boilerplate: Hashes | None = None

    def add(self, words: Words, start: int) -> None:
        """Sign the texts of a chunk, the first of which has the number `start`."""
        if self._boilerplate is None:
            self._boilerplate = _template_shingles(words)
        table, texts = signatures(words, self._boilerplate)
        enough = np.bincount(words.owner, minlength=words.texts)[texts] >= ENOUGH_WORDS
        self._table.add(table[enough])
        self._texts.add(texts[enough] + start)

    def find(self, exact: NDArray[np.int64]) -> tuple[Places, Places]:
        """(text, earlier text) that are nearly, not exactly, the same. `exact` holds hashes of all texts."""
        texts = self._texts.values
        table = self._table.values.reshape(-1, SIGNATURE)
        _, unique = np.unique(exact[texts], return_index=True)
        unique = np.sort(unique)
        found = [_similar(table, unique, band) for band in range(BANDS)]
        later = texts[np.concatenate([later for later, _ in found])]
        earlier = texts[np.concatenate([earlier for _, earlier in found])]
        return _one_each(later, earlier)


def _template_shingles(words: Words) -> Hashes:
    """Sorted shingles that stand in many of the texts; none when there are too few texts to tell."""
    if words.texts < ENOUGH_TEXTS:
        return np.zeros(0, np.uint64)
    shingles, owner = words.shingles()
    # Once a text: the pair (text, shingle) is made unique through one sort.
    order = np.lexsort((shingles, owner))
    shingles, owner = shingles[order], owner[order]
    new = np.append(True, (shingles[1:] != shingles[:-1]) | (owner[1:] != owner[:-1]))[: len(shingles)]
    values, counts = np.unique(shingles[new], return_counts=True)
    return values[counts > TEMPLATE_SHARE * words.texts]


def _similar(table: NDArray[np.uint32], rows: Places, band: int) -> tuple[Places, Places]:
    """(row, earlier row) among `rows` that share this band and agree in SIMILAR of the whole signature."""
    keys = band_keys(table, band)[rows]
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    later, earlier = [], []
    for step in range(1, NEIGHBOURS + 1):
        same = np.flatnonzero(keys[step:] == keys[:-step])
        for part in np.array_split(same, len(same) // 100_000 + 1):
            one, other = rows[part + step], rows[part]
            agree = (table[one] == table[other]).mean(axis=1) >= SIMILAR
            later.append(one[agree])
            earlier.append(other[agree])
    return np.concatenate(later), np.concatenate(earlier)


def _earlier(values: NDArray[np.int64]) -> tuple[Places, Places]:
    """(place, first place) of every value that stood before."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    places = np.arange(len(values))
    again = places[first[inverse] != places]
    return again, first[inverse][again]


def _under_other_prompt(
    answers: NDArray[np.int64], long: NDArray[np.bool_], prompts: NDArray[np.int64]
) -> tuple[Places, Places]:
    """(pair, first pair) of answers, long enough to mean something, that stood under another prompt."""
    kept = np.flatnonzero(long)
    again, first = _earlier(answers[kept])
    again, first = kept[again] // 2, kept[first] // 2
    apart = prompts[again] != prompts[first]
    return _one_each(again[apart], first[apart])


def _one_each(places: Places, partners: Places) -> tuple[Places, Places]:
    """Each place once, in order, with the earliest of its partners."""
    order = np.lexsort((partners, places))
    places, partners = places[order], partners[order]
    unique, index = np.unique(places, return_index=True)
    return unique, partners[index]


def _finding(check: Check, total: int, places: Places, partners: Places, message: str) -> Iterator[Finding]:
    if len(places):
        pairs = list(zip(places.tolist(), partners.tolist(), strict=True))[:EXAMPLES]
        samples = tuple(Sample((partner, place)) for place, partner in pairs)
        words = message.format(n=f"{len(places):,}")
        yield Finding(check, len(places), total, words, samples, places)
