"""The table of checks, and one pass of all over a data set; memory grows by 600 bytes a pair, not by text."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from localdpo.core.text import counted
from localdpo.data.rows import (
    AGAINST_SCORES,
    SHARED_WORDS,
    InvalidRow,
    ReadingNotes,
    Skipped,
    name_unread,
    read_rows,
    source_format,
)
from localdpo.data.sources import open_source
from localdpo.data.types import Pair
from localdpo.prefs.checks.base import (
    CHUNK_ROWS,
    EXAMPLES,
    LEVELS,
    Check,
    CheckSettings,
    Chunk,
    Family,
    Finding,
    FindingExample,
    PairColumn,
)
from localdpo.prefs.checks.lengths import Lengths, TokenLengths
from localdpo.prefs.checks.overlap import Overlap
from localdpo.prefs.checks.reference import ReferenceAccuracy
from localdpo.prefs.checks.repeats import Duplicates, Labels
from localdpo.prefs.checks.texts import Markers, Skew
from localdpo.prefs.report import CheckReport

# A new check is an entry in its family's file; a new family is a class and a line in FAMILIES.
# What reading alone shows: rows that are no pair, columns that nobody reads, scores against the order.
UNREADABLE = Check(
    "unreadable-rows",
    "error",
    "a row that cannot be read",
    "fix the field that is named, or remove the row; training stops at it",
    drops=True,
)
UNUSABLE = Check(
    "unusable-rows",
    "info",
    "a well-formed row that makes no pair",
    "no action needed: training drops it, and so does cleaning",
    drops=True,
)
UNREAD = Check(
    "unread-columns",
    "warning",
    "columns that nobody reads",
    "put what belongs to the prompt into it, or remove the columns",
    rows=False,
)
SHARED = Check(
    "shared-words-as-prompt",
    "info",
    "prompts that are the words which both answers happen to open with",
    "give the prompt a column of its own, called prompt",
    rows=False,
)
SCORES = Check(
    "scores-against-order",
    "warning",
    "the rejected answer has the higher score",
    "swap the two answers, or remove the pair",
)

FAMILIES: Final[tuple[type[Family], ...]] = (
    Lengths,
    Labels,
    Duplicates,
    Markers,
    Skew,
    Overlap,
    TokenLengths,
    ReferenceAccuracy,
)
CHECKS: Final[tuple[Check, ...]] = (
    UNREADABLE,
    UNUSABLE,
    UNREAD,
    SHARED,
    SCORES,
    *(check for family in FAMILIES for check in family.checks),
)

Progress = Callable[[int], None]
"""Called with the number of rows read so far."""


def check(
    source: str, settings: CheckSettings | None = None, progress: Progress | None = None
) -> CheckReport:
    """The report on a data set of pairs.

    Raises UserError for data that is missing, empty or of another kind, and for a format, a tokenizer or a
    data set to compare with that does not exist. Rows that cannot be read are a finding.
    """
    settings = settings or CheckSettings()
    began = time.monotonic()
    opened = open_source(source)
    adapter = source_format(opened, "pairs", settings.format_name)
    not_checked: list[str] = []
    families: list[Family] = []
    for family_class in FAMILIES:
        family = family_class.from_settings(settings, not_checked)
        if family is not None:
            families.append(family)
    reading = _Reading()
    rows = read_rows(opened, "pairs", None, settings.format_name, reading.notes)
    for chunk in reading.chunks(rows, progress):
        for family in families:
            family.add(chunk)
    results = list(reading.results())
    facts = {"rows": reading.rows, "pairs": reading.pairs}
    if reading.pairs:
        for family in families:
            results += [reading.resolve(finding) for finding in family.finish(reading.pairs)]
            facts |= family.facts()
    results.sort(key=lambda result: LEVELS.index(result.check.level))
    return CheckReport(
        source=opened.label,
        read_as=adapter.name if adapter else "unknown",
        facts=facts,
        results=tuple(results),
        not_checked=tuple(not_checked),
        seconds=time.monotonic() - began,
    )


@dataclass
class _Reading:
    """From rows to chunks of pairs, with the rows of every pair and the rows that make none."""

    rows: int = 0
    pairs: int = 0
    notes: ReadingNotes = field(default_factory=ReadingNotes)
    _first: PairColumn = field(default_factory=PairColumn)
    _last: PairColumn = field(default_factory=PairColumn)
    _unreadable: dict[int, str] = field(default_factory=dict)
    _unusable: dict[int, str] = field(default_factory=dict)

    def chunks(self, rows: Iterable, progress: Progress | None) -> Iterator[Chunk]:
        """The pairs of the rows, CHUNK_ROWS at a time."""
        chunk = Chunk(0)
        for row in rows:
            self.rows = max(self.rows, row.rows[-1] + 1)
            if isinstance(row.result, InvalidRow):
                self._unreadable[row.rows[0]] = row.result.message
            elif isinstance(row.result, Skipped):
                self._unusable[row.rows[0]] = row.result.reason
            else:
                assert isinstance(row.result, Pair)
                chunk.add(row.result)
                self._first.add(row.rows[0])
                self._last.add(row.rows[-1])
                self.pairs += 1
            if len(chunk) == CHUNK_ROWS:
                yield chunk
                chunk = Chunk(self.pairs)
                if progress is not None:
                    progress(self.rows)
        if len(chunk):
            yield chunk

    def results(self) -> Iterator[Finding]:
        """Findings about the rows that make no pair, and about how the others were read."""
        for check_, notes in ((UNREADABLE, self._unreadable), (UNUSABLE, self._unusable)):
            if notes:
                examples = tuple(
                    FindingExample((row + 1,), note) for row, note in list(notes.items())[:EXAMPLES]
                )
                numbers = np.fromiter(notes, np.int64)
                reasons = [f"{reason} ({count:,})" for reason, count in Counter(notes.values()).most_common()]
                words = "; ".join(reasons) if check_ is UNUSABLE else check_.what
                message = f"{counted(len(notes), 'row')}: {words}"
                yield Finding(check_, len(notes), self.rows, message, examples, numbers)
        if self.notes.unread:
            yield Finding(UNREAD, max(self.notes.unread.values()), self.rows, name_unread(self.notes.unread))
        if shared := self.notes.shared_words:
            yield Finding(SHARED, shared, self.pairs, f"{counted(shared, 'pair')}: {SHARED_WORDS}")
        if against := self.notes.against_scores:
            examples = tuple(FindingExample((row + 1,)) for row in against[:EXAMPLES])
            numbers = np.array(against, np.int64)
            message = f"{counted(len(against), 'pair')}: {AGAINST_SCORES}"
            yield Finding(SCORES, len(against), self.pairs, message, examples, numbers)

    def resolve(self, finding: Finding) -> Finding:
        """A finding with the numbers of pairs replaced by the numbers of their rows."""
        first, last = self._first.values, self._last.values
        rows = [
            tuple(dict.fromkeys(int(row[pair]) + 1 for pair in example.numbers for row in (first, last)))
            for example in finding.examples
        ]
        examples = tuple(map(FindingExample, rows, (example.note for example in finding.examples)))
        numbers = np.unique(np.concatenate([first[finding.numbers], last[finding.numbers]]))
        return replace(finding, examples=examples, numbers=numbers)
