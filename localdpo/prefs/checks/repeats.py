"""Pairs compared with each other: contradictions, circles of preferences, and repeats, exact or nearly."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from localdpo.core.text import have
from localdpo.prefs.checks.base import (
    EXAMPLES,
    Check,
    Chunk,
    Family,
    Finding,
    FindingExample,
    PairColumn,
    flagged_pairs,
    hashes,
)
from localdpo.prefs.shingles import BANDS, SIGNATURE, Hashes, Words, band_keys, signatures

Indices: TypeAlias = NDArray[np.int64]

IDENTICAL = Check(
    "identical-answers",
    "error",
    "both answers are the same",
    "remove them: nothing can be learnt from them, and training drops them anyway",
    drops=True,
)
SAME_WORDS = Check(
    "same-but-for-space",
    "warning",
    "both answers are the same but for white space or case",
    "remove them, unless layout is what the preference is about",
)
CONTRADICTORY = Check(
    "contradictory-pairs",
    "error",
    "the same prompt and answers with the opposite preference",
    "keep the one that is right, or remove both",
    drops=True,
)
CYCLES = Check(
    "cycles",
    "warning",
    "preferences that go in a circle (A over B, B over C, C over A)",
    "judge these answers again, or remove the pairs",
    drops=True,
)


class Labels(Family):
    """Preferences as a graph: an answer to a prompt is a node, a pair points from better to worse."""

    checks: ClassVar[tuple[Check, ...]] = (IDENTICAL, SAME_WORDS, CONTRADICTORY, CYCLES)

    def __init__(self) -> None:
        self._identical: dict[int, str] = {}
        self._same_words: dict[int, str] = {}
        self._better = PairColumn()
        self._worse = PairColumn()

    def add(self, chunk: Chunk) -> None:
        for number, (chosen, rejected) in enumerate(
            zip(chunk.chosen, chunk.rejected, strict=True), chunk.start
        ):
            if chosen == rejected:
                self._identical[number] = ""
            elif "".join(chosen.split()).casefold() == "".join(rejected.split()).casefold():
                self._same_words[number] = ""
        self._better.add(hashes(list(zip(chunk.prompts, chunk.chosen, strict=True))))
        self._worse.add(hashes(list(zip(chunk.prompts, chunk.rejected, strict=True))))

    def finish(self, total: int) -> Iterator[Finding]:
        better, worse = self._better.values, self._worse.values
        yield from flagged_pairs(IDENTICAL, total, self._identical, "chosen and rejected are the same text")
        yield from flagged_pairs(
            SAME_WORDS, total, self._same_words, "chosen and rejected differ in white space or case only"
        )
        opposite, circles = _circles(better, worse)
        yield from _grouped(CONTRADICTORY, opposite, better, worse, "the preference occurs in both orders")
        yield from _grouped(CYCLES, circles, better, worse, "the preferences of one prompt go in a circle")


def _circles(better: NDArray[Any], worse: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Of each pair, whether another one prefers its two answers the other way round; and if none does,
    whether it lies on a longer circle: both ends in one strongly connected part of the graph."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    answers, numbers = np.unique(np.concatenate([better, worse]), return_inverse=True)
    head, tail, nodes = numbers[: len(better)], numbers[len(better) :], len(answers)
    opposite = np.isin(head * nodes + tail, tail * nodes + head) & (head != tail)
    graph = coo_array((np.ones(len(head), np.int8), (head, tail)), shape=(nodes, nodes)).tocsr()
    _, part = connected_components(graph, directed=True, connection="strong")
    return opposite, (part[head] == part[tail]) & (head != tail) & ~opposite


def _grouped(
    check: Check, flagged: NDArray[np.bool_], better: NDArray[Any], worse: NDArray[Any], message: str
) -> Iterator[Finding]:
    """One finding; its examples are the pairs that belong together."""
    pairs = np.flatnonzero(flagged)
    if not len(pairs):
        return
    groups: dict[frozenset[int], list[int]] = {}
    for pair in map(int, pairs[: 50 * EXAMPLES]):
        answers = frozenset((int(better[pair]), int(worse[pair])))
        group = next((key for key in groups if key & answers), None)
        if group is None:
            groups[answers] = [pair]
        else:
            groups[group | answers] = [*groups.pop(group), pair]
    examples = tuple(FindingExample(tuple(members)) for members in list(groups.values())[:EXAMPLES])
    yield Finding(check, len(pairs), len(flagged), message, examples, pairs)


# --- repeats ---------------------------------------------------------------------------------------------

# Texts with fewer words than this repeat by chance ("Yes.", "I do not know.").
ENOUGH_WORDS = 8
# Share of word triples in common (Jaccard, estimated from the signatures) from which on two texts count as
# nearly the same: of 30 words one may differ.
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
    "remove all but the first: a repeated pair counts twice, and may be on both sides of a split",
    drops=True,
)
PROMPTS = Check(
    "repeated-prompts",
    "info",
    "a prompt that an earlier pair has too",
    "fine if several pairs for a prompt are intended; the split into train and valid goes by prompt",
)
ANSWERS = Check(
    "repeated-answers",
    "info",
    "an answer that occurs under another prompt too",
    "look at them: one stock answer to many prompts is often a refusal or a failed generation",
)
NEAR_PROMPTS = Check(
    "near-duplicate-prompts",
    "info",
    "a prompt that is nearly an earlier one",
    "remove what says the same twice, and keep one group on one side of a split",
)
NEAR_ANSWERS = Check(
    "near-duplicate-answers",
    "info",
    "an answer that is nearly one to another prompt",
    "look at them: answers from a template teach the template",
)


class Duplicates(Family):
    """Hashes of all texts, and MinHash signatures of prompts and answers (128 bytes each)."""

    checks: ClassVar[tuple[Check, ...]] = (PAIRS, PROMPTS, ANSWERS, NEAR_PROMPTS, NEAR_ANSWERS)

    def __init__(self) -> None:
        self._pairs, self._prompts = PairColumn(), PairColumn()
        self._answers = PairColumn()
        self._long = PairColumn(np.bool_)
        self._near_prompts, self._near_answers = _Near(), _Near()

    def add(self, chunk: Chunk) -> None:
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

    def finish(self, total: int) -> Iterator[Finding]:
        prompts = self._prompts.values
        again, first = _earlier(self._pairs.values)
        yield from _finding(PAIRS, total, again, first, "come before")
        repeats, first = _earlier(prompts)
        yield from _finding(PROMPTS, total, repeats, first, "a prompt that came before")
        answers, long = self._answers.values, self._long.values
        other, first = _under_other_prompt(answers, long, prompts)
        yield from _finding(ANSWERS, total, other, first, "an answer of another prompt")
        near, first = self._near_prompts.find(prompts)
        yield from _finding(NEAR_PROMPTS, total, near, first, "nearly the prompt of another")
        near, first = self._near_answers.find(answers)
        apart = prompts[near // 2] != prompts[first // 2]
        near, first = _first_partners(near[apart] // 2, first[apart] // 2)
        yield from _finding(NEAR_ANSWERS, total, near, first, "nearly an answer of another prompt")


class _Near:
    """Signatures of texts, and which of them are nearly the same."""

    def __init__(self) -> None:
        self._table = PairColumn(np.uint32)
        self._texts = PairColumn()
        self._boilerplate: Hashes | None = None

    def add(self, words: Words, start: int) -> None:
        """Sign the texts of a chunk, the first of which has the number `start`."""
        if self._boilerplate is None:
            self._boilerplate = _template_shingles(words)
        table, texts = signatures(words, self._boilerplate)
        enough = np.bincount(words.owner, minlength=words.texts)[texts] >= ENOUGH_WORDS
        self._table.add(table[enough])
        self._texts.add(texts[enough] + start)

    def find(self, exact: NDArray[np.int64]) -> tuple[Indices, Indices]:
        """(text, earlier text) that are nearly, not exactly, the same. `exact` holds hashes of all texts."""
        texts = self._texts.values
        table = self._table.values.reshape(-1, SIGNATURE)
        _, unique = np.unique(exact[texts], return_index=True)
        unique = np.sort(unique)
        similar = [_similar(table, unique, band) for band in range(BANDS)]
        later = texts[np.concatenate([later for later, _ in similar])]
        earlier = texts[np.concatenate([earlier for _, earlier in similar])]
        return _first_partners(later, earlier)


def _template_shingles(words: Words) -> Hashes:
    """Sorted shingles that occur in many of the texts; none when there are too few texts to tell."""
    if words.texts < ENOUGH_TEXTS:
        return np.zeros(0, np.uint64)
    shingles, owner = words.shingles()
    # Once a text: the pair (text, shingle) is made unique through one sort.
    order = np.lexsort((shingles, owner))
    shingles, owner = shingles[order], owner[order]
    new = np.append(True, (shingles[1:] != shingles[:-1]) | (owner[1:] != owner[:-1]))[: len(shingles)]
    values, counts = np.unique(shingles[new], return_counts=True)
    return values[counts > TEMPLATE_SHARE * words.texts]


def _similar(table: NDArray[np.uint32], rows: Indices, band: int) -> tuple[Indices, Indices]:
    """(row, earlier row) among `rows` that share this band and agree in SIMILAR of the whole signature."""
    keys = band_keys(table, band)[rows]
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    later, earlier = [], []
    for step in range(1, NEIGHBOURS + 1):
        same = np.flatnonzero(keys[step:] == keys[:-step])
        for part in np.array_split(same, len(same) // 100_000 + 1):
            second, first = rows[part + step], rows[part]
            agree = (table[second] == table[first]).mean(axis=1) >= SIMILAR
            later.append(second[agree])
            earlier.append(first[agree])
    return np.concatenate(later), np.concatenate(earlier)


def _earlier(values: NDArray[np.int64]) -> tuple[Indices, Indices]:
    """(index, first index) of every value that occurred before."""
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    indices = np.arange(len(values))
    again = indices[first[inverse] != indices]
    return again, first[inverse][again]


def _under_other_prompt(
    answers: NDArray[np.int64], long: NDArray[np.bool_], prompts: NDArray[np.int64]
) -> tuple[Indices, Indices]:
    """(pair, first pair) of answers, long enough to mean something, that occurred under another prompt."""
    compared = np.flatnonzero(long)
    again, first = _earlier(answers[compared])
    again, first = compared[again] // 2, compared[first] // 2
    apart = prompts[again] != prompts[first]
    return _first_partners(again[apart], first[apart])


def _first_partners(indices: Indices, partners: Indices) -> tuple[Indices, Indices]:
    """Each index once, in order, with the earliest of its partners."""
    order = np.lexsort((partners, indices))
    indices, partners = indices[order], partners[order]
    unique, first = np.unique(indices, return_index=True)
    return unique, partners[first]


def _finding(check: Check, total: int, pairs: Indices, partners: Indices, what: str) -> Iterator[Finding]:
    """The finding that `pairs` have `what`, with their `partners` as examples; none without pairs."""
    if len(pairs):
        shown = list(zip(pairs.tolist(), partners.tolist(), strict=True))[:EXAMPLES]
        examples = tuple(FindingExample((partner, pair)) for pair, partner in shown)
        words = f"{have(len(pairs), 'pair')} {what}"
        yield Finding(check, len(pairs), total, words, examples, pairs)
