"""From a source to examples: detect the format, adapt every row, split pairs, gather the problems."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from localdpo.core.errors import UserError, UserErrors
from localdpo.data.adapters.named import Answer
from localdpo.data.encode import IDENTICAL
from localdpo.data.fields import RowProblem, RowSkip
from localdpo.data.formats import Format, detect, named_format
from localdpo.data.sources import Source, SourceRow
from localdpo.data.types import Example, Kind, Pair, Rated

# Columns are gathered over this many rows, so that one row that lacks a field does not change the format.
_SAMPLE_ROWS = 100
_SHOWN_PROBLEMS = 20
UNMATCHED = "no neighbouring row answers the same prompt with another score"

Record: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that is well-formed and cannot be used, with the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a row that cannot be read: the field and what was expected."""

    message: str


@dataclass(frozen=True, slots=True)
class ReadRow:
    """What one row gave, or two rows that make a pair together. Row numbers count from 0."""

    rows: tuple[int, ...]
    records: tuple[Record, ...]
    result: Example | Skipped | Problem


def read_examples(
    source: Source, kind: Kind, limit: int | None = None, format_name: str | None = None
) -> Iterator[tuple[int, Example | Skipped]]:
    """(row number, example or Skipped) of the first `limit` rows, read as they are asked for.

    Pairs that are read as unpaired rows give two examples of one row number.

    Raises UserError for data of the wrong kind and for none at all; UserErrors with the first problems and a
    count of the rest, after all rows were seen. From the first problem on nothing more is yielded.
    """
    problems = Problems(source.label)
    for row in read_rows(source, kind, limit, format_name):
        if isinstance(row.result, Problem):
            problems.add(row.rows[0], row.result.message)
        elif not problems:
            pair = row.result if kind == "unpaired" and isinstance(row.result, Pair) else None
            for one in (row.result,) if pair is None else split_pair(pair):
                yield row.rows[0], one
    problems.raise_if_any()


def read_rows(
    source: Source, kind: Kind, limit: int | None = None, format_name: str | None = None
) -> Iterator[ReadRow]:
    """What each of the first `limit` rows gave, problems included, in the order of the rows.

    A row of several pairs comes once for each. Raises UserError for data of the wrong kind and for none.
    """
    rows = itertools.islice(source.rows(), limit)
    sample = list(itertools.islice(rows, _SAMPLE_ROWS))
    if not sample:
        raise UserError(f"{source.label}: no rows; expected at least one")
    adapter = format_of(sample, kind, source.label, format_name)
    neighbours = _Neighbours()
    for row in itertools.chain(sample, rows):
        yield from neighbours.add(row, _read_row(row, adapter))
    yield from neighbours.rest()


def format_of(sample: list[SourceRow], kind: Kind, label: str, format_name: str | None) -> Format | None:
    """The format that is named, or that the columns of the sample have; None when no row has fields.

    Raises UserError when none fits.
    """
    if format_name is not None:
        return named_format(format_name, kind)
    columns = {column for row in sample if row.record for column in row.record}
    return detect(columns, kind, label) if columns else None


def source_format(source: Source, kind: Kind, format_name: str | None = None) -> Format | None:
    """The format in which `read_rows` reads a source."""
    return format_of(list(itertools.islice(source.rows(), _SAMPLE_ROWS)), kind, source.label, format_name)


def split_pair(pair: Pair) -> tuple[Example | Skipped, ...]:
    """Both responses as rows of their own: the chosen one desirable, the rejected one undesirable.

    As TRL splits a paired data set for KTO, but side by side: the first rows of the result hold both labels.
    A response that is chosen and rejected at once says nothing.
    """
    if pair.chosen == pair.rejected:
        return (Skipped(IDENTICAL),)
    return tuple(
        Rated(pair.prompt, response, desirable, pair.tools, pair.template_kwargs, of_pair=True)
        for response, desirable in ((pair.chosen, True), (pair.rejected, False))
    )


_Result: TypeAlias = "Example | Answer | Skipped | Problem"


def _read_row(row: SourceRow, adapter: Format | None) -> list[_Result]:
    if row.record is None or adapter is None:
        return [Problem(row.problem or "expected named fields, found none")]
    try:
        read = adapter.read(row.record)
    except RowProblem as problem:
        return [Problem(str(problem))]
    except RowSkip as skip:
        return [Skipped(skip.reason)]
    return list(read) if isinstance(read, list) else [read]  # type: ignore[list-item]


@dataclass
class _Neighbours:
    """Makes pairs of Answers: each with the first waiting one of its prompt that has another score."""

    waiting: list[tuple[SourceRow, Answer]] = field(default_factory=list)

    def add(self, row: SourceRow, results: list[_Result]) -> Iterator[ReadRow]:
        for result in results:
            if not isinstance(result, Answer):
                yield ReadRow((row.number,), (row.record or {},), result)
                continue
            if self.waiting and self.waiting[0][1].prompt != result.prompt:
                yield from self.rest()
            partner = next((one for one in self.waiting if one[1].score != result.score), None)
            if partner is None:
                self.waiting.append((row, result))
                continue
            self.waiting.remove(partner)
            first, answer = partner
            pair = answer.against(result)
            yield ReadRow((first.number, row.number), (first.record or {}, row.record or {}), pair)

    def rest(self) -> Iterator[ReadRow]:
        """The answers that found no partner."""
        for row, _ in self.waiting:
            yield ReadRow((row.number,), (row.record or {},), Skipped(UNMATCHED))
        self.waiting = []


class Problems:
    """The first problems of a source, and a count of the rest."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.shown: list[UserError] = []
        self.count = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, row: int, message: str) -> None:
        """One problem of the row with this number from 0."""
        self.count += 1
        if len(self.shown) < _SHOWN_PROBLEMS:
            self.shown.append(UserError(f"{self.label}:{row + 1} {message}"))

    def raise_if_any(self) -> None:
        """Raise UserErrors if there was one."""
        if not self.count:
            return
        hidden = self.count - len(self.shown)
        rest = [UserError(f"{self.label}: {hidden:,} more rows with problems")] if hidden else []
        raise UserErrors([*self.shown, *rest])
