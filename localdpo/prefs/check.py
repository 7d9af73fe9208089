"""Runs all checks over a data set in one pass; memory grows by some 600 bytes a pair, not by its text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from localdpo.core.text import counted
from localdpo.data.encode import Limits
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
from localdpo.data.types import Pair, TemplateChoice
from localdpo.prefs.against import evaluation_prompts
from localdpo.prefs.checks import Duplicates, Labels, Markers, Overlap, Reference, Sizes, Skew, Tokens
from localdpo.prefs.checks.reading import SCORES, SHARED, UNREAD, UNREADABLE, UNUSABLE
from localdpo.prefs.checks.reference import Score
from localdpo.prefs.columns import Column
from localdpo.prefs.findings import EXAMPLES, LEVELS, Family, Finding
from localdpo.prefs.report import Example, Report, Result
from localdpo.prefs.rows import CHUNK_ROWS, Chunk
from localdpo.prefs.tokenizer import end_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int], None]
"""Called with the number of rows read so far."""


@dataclass(frozen=True)
class Options:
    """What the checks have to go by, besides the data.

    Attributes:
        format_name: as in data.format; None: told from the columns.
        tokenizer: None leaves out all that counts tokens. limits: None leaves out what they cut.
        against: data sets whose prompts must not be in the data.
        reference: what scores pairs, and how many of them.
    """

    format_name: str | None = None
    tokenizer: PreTrainedTokenizerBase | None = None
    template: TemplateChoice = "auto"
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits | None = None
    against: Sequence[str] = ()
    reference: tuple[Score, int] | None = None


def check(source: str, options: Options | None = None, progress: Progress | None = None) -> Report:
    """The report on a data set of pairs.

    Raises UserError for data that is missing, empty or of another kind, and for a format, a tokenizer or a
    data set to compare with that is not there. Rows that cannot be read are a finding.
    """
    options = options or Options()
    began = time.monotonic()
    opened = open_source(source)
    adapter = source_format(opened, "pairs", options.format_name)
    families, left_out = _families(options)
    reading = _Reading()
    rows = read_rows(opened, "pairs", None, options.format_name, reading.notes)
    for chunk in reading.chunks(rows, progress):
        for family in families:
            family.add(chunk)
    results = list(reading.results())
    facts = {"rows": reading.rows, "pairs": reading.pairs}
    if reading.pairs:
        for family in families:
            results += [reading.resolve(finding) for finding in family.finish()]
            facts |= family.facts()
    results.sort(key=lambda result: LEVELS.index(result.check.level))
    return Report(
        source=opened.label,
        read_as=adapter.name if adapter else "unknown",
        facts=facts,
        results=tuple(results),
        not_checked=tuple(left_out),
        seconds=time.monotonic() - began,
    )


def _families(options: Options) -> tuple[list[Family], list[str]]:
    """The families that can look at the data, and what is left out, with what it would need."""
    tokenizer, left_out = options.tokenizer, []
    special = list(tokenizer.get_added_vocab()) if tokenizer is not None else []
    families: list[Family] = [Sizes(), Labels(), Duplicates(), Markers(special), Skew()]
    if options.against:
        families.append(Overlap(evaluation_prompts(options.against)))
    else:
        left_out.append(
            "overlap with evaluation prompts: give --against DATA, or --recipe FILE with data.valid"
        )
    if tokenizer is not None:
        ends = end_ids(tokenizer)
        families.append(Tokens(tokenizer, options.template, options.limits, ends, options.template_kwargs))
    if tokenizer is None or options.limits is None:
        left_out.append("tokens and truncation: give --recipe FILE, or --model NAME and --max-length N")
    if options.reference is not None:
        families.append(Reference(*options.reference))
    else:
        left_out.append("reference accuracy: give --reference N (pairs to score) with --recipe FILE")
    return families, left_out


@dataclass
class _Reading:
    """From rows to chunks of pairs, with the rows of every pair and the rows that are none."""

    rows: int = 0
    pairs: int = 0
    notes: ReadingNotes = field(default_factory=ReadingNotes)
    _first: Column = field(default_factory=Column)
    _last: Column = field(default_factory=Column)
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

    def results(self) -> Iterator[Result]:
        """What is to say about rows that are no pair, and about how the others were read."""
        for check_, found in ((UNREADABLE, self._unreadable), (UNUSABLE, self._unusable)):
            if found:
                examples = tuple(Example((row + 1,), note) for row, note in list(found.items())[:EXAMPLES])
                numbers = np.fromiter(found, np.int64)
                words = _reasons(found.values()) if check_ is UNUSABLE else check_.what
                yield Result(
                    check_, len(found), self.rows, f"{counted(len(found), 'row')}: {words}", examples, numbers
                )

        yield from self._noted()

    def _noted(self) -> Iterator[Result]:
        if self.notes.unread:
            yield Result(UNREAD, max(self.notes.unread.values()), self.rows, name_unread(self.notes.unread))
        if shared := self.notes.shared_words:
            yield Result(SHARED, shared, self.pairs, f"{shared:,} pairs: {SHARED_WORDS}")
        if against := self.notes.against_scores:
            examples = tuple(Example((row + 1,)) for row in against[:EXAMPLES])
            numbers = np.array(against, np.int64)
            message = f"{len(against):,} pairs: {AGAINST_SCORES}"
            yield Result(SCORES, len(against), self.pairs, message, examples, numbers)

    def resolve(self, finding: Finding) -> Result:
        """A finding with places turned into row numbers."""
        examples = tuple(
            Example(
                tuple(dict.fromkeys(n + 1 for place in sample.places for n in self._of(place))), sample.note
            )
            for sample in finding.samples
        )
        rows = np.unique(
            np.concatenate([column.values[finding.places] for column in (self._first, self._last)])
        )
        return Result(finding.check, finding.count, finding.total, finding.message, examples, rows)

    def _of(self, place: int) -> tuple[int, int]:
        return int(self._first.values[place]), int(self._last.values[place])


def _reasons(reasons: Iterable[str]) -> str:
    """The reasons with their counts, the most frequent first."""
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return "; ".join(f"{reason} ({count:,})" for reason, count in ordered)
