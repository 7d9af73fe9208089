"""Pairs that contradict themselves or each other: no difference, both orders, preferences in a circle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from localdpo.prefs.columns import Column, hashes
from localdpo.prefs.findings import EXAMPLES, Check, Finding, Sample, at_rows
from localdpo.prefs.rows import Chunk

IDENTICAL = Check(
    "identical-answers",
    "error",
    "both answers are the same",
    "take them out: nothing can be learnt from them, and training drops them anyway",
    drops=True,
)
SAME_WORDS = Check(
    "same-but-for-space",
    "warning",
    "both answers are the same but for white space or case",
    "take them out, unless layout is what the preference is about",
)
CONTRADICTORY = Check(
    "contradictory-pairs",
    "error",
    "the same prompt and answers with the opposite preference",
    "keep the one that is right, or take out both",
    drops=True,
)
CYCLES = Check(
    "cycles",
    "warning",
    "preferences that go in a circle (A over B, B over C, C over A)",
    "judge these answers again, or take the pairs out",
    drops=True,
)


class Labels:
    """Preferences as a graph: an answer to a prompt is a node, a pair points from better to worse."""

    checks: ClassVar[tuple[Check, ...]] = (IDENTICAL, SAME_WORDS, CONTRADICTORY, CYCLES)

    def __init__(self) -> None:
        self._identical: list[int] = []
        self._same_words: list[int] = []
        self._better = Column()
        self._worse = Column()

    def add(self, chunk: Chunk) -> None:
        """Compare the two sides; remember the pair as an edge."""
        for place, (chosen, rejected) in enumerate(
            zip(chunk.chosen, chunk.rejected, strict=True), chunk.start
        ):
            if chosen == rejected:
                self._identical.append(place)
            elif "".join(chosen.split()).casefold() == "".join(rejected.split()).casefold():
                self._same_words.append(place)
        self._better.add(hashes(list(zip(chunk.prompts, chunk.chosen, strict=True))))
        self._worse.add(hashes(list(zip(chunk.prompts, chunk.rejected, strict=True))))

    def finish(self) -> Iterator[Finding]:
        """Identical sides, contradictions, and longer circles without them."""
        better, worse = self._better.values, self._worse.values
        total = len(better)
        yield from at_rows(IDENTICAL, total, self._identical, "chosen and rejected are the same text")
        yield from at_rows(
            SAME_WORDS, total, self._same_words, "chosen and rejected differ in white space or case only"
        )
        opposite = _with_opposite(better, worse)
        yield from _grouped(CONTRADICTORY, opposite, better, worse, "the preference stands in both orders")
        circles = _in_circles(better, worse) & ~opposite
        yield from _grouped(CYCLES, circles, better, worse, "the preferences of one prompt go in a circle")

    def facts(self) -> dict[str, Any]:
        """Nothing besides the findings."""
        return {}


def _with_opposite(better: NDArray[Any], worse: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether the same two answers stand the other way round in another pair."""
    nodes, ends = np.unique(np.concatenate([better, worse]), return_inverse=True)
    head, tail = ends[: len(better)], ends[len(better) :]
    forward, backward = head * len(nodes) + tail, tail * len(nodes) + head
    return np.isin(forward, backward) & (head != tail)


def _in_circles(better: NDArray[Any], worse: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether a pair lies on a circle: both ends in one strongly connected part of the graph."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    nodes, ends = np.unique(np.concatenate([better, worse]), return_inverse=True)
    head, tail = ends[: len(better)], ends[len(better) :]
    graph = coo_array((np.ones(len(head), np.int8), (head, tail)), shape=(len(nodes),) * 2).tocsr()
    _, part = connected_components(graph, directed=True, connection="strong")
    return (part[head] == part[tail]) & (head != tail)


def _grouped(
    check: Check, flagged: NDArray[np.bool_], better: NDArray[Any], worse: NDArray[Any], message: str
) -> Iterator[Finding]:
    """One finding; its examples are the pairs that belong together."""
    places = np.flatnonzero(flagged)
    if not len(places):
        return
    groups: dict[frozenset[int], list[int]] = {}
    for place in places[: 50 * EXAMPLES]:
        ends = frozenset((int(better[place]), int(worse[place])))
        home = next((key for key in groups if key & ends), None)
        if home is None:
            groups[ends] = [int(place)]
        else:
            groups[home | ends] = [*groups.pop(home), int(place)]
    samples = tuple(Sample(tuple(group)) for group in list(groups.values())[:EXAMPLES])
    yield Finding(check, len(places), len(flagged), message, samples, places)
