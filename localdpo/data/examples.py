"""From a source to examples: detect the format, adapt every row, split pairs, gather the problems."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from localdpo.core.errors import UserError, UserErrors
from localdpo.data.encode import IDENTICAL
from localdpo.data.fields import RowProblem, RowSkip
from localdpo.data.formats import Format, detect
from localdpo.data.sources import Source, SourceRow
from localdpo.data.types import Example, Kind, Pair, Rated

# Columns are gathered over this many rows, so that one row that lacks a field does not change the format.
_SAMPLE_ROWS = 100
_SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that is well-formed and cannot be used, with the reason."""

    reason: str


def read_examples(
    source: Source, kind: Kind, limit: int | None = None
) -> Iterator[tuple[int, Example | Skipped]]:
    """(row number, example or Skipped) of the first `limit` rows, read as they are asked for.

    Pairs that are read as unpaired rows give two examples of one row number.

    Raises UserError for data of the wrong kind and for none at all; UserErrors with the first problems and a
    count of the rest, after all rows were seen. From the first problem on nothing more is yielded.
    """
    rows = itertools.islice(source.rows(), limit)
    sample = list(itertools.islice(rows, _SAMPLE_ROWS))
    if not sample:
        raise UserError(f"{source.label}: no rows; expected at least one")
    columns = {column for row in sample if row.record for column in row.record}
    problems = _Problems(source.label)
    adapter = detect(columns, kind, source.label) if columns else None
    for row in itertools.chain(sample, rows):
        result = _read_row(row, adapter, problems)
        if result is not None and not problems:
            for one in split_pair(result) if isinstance(result, Pair) and kind == "unpaired" else (result,):
                yield row.number, one
    problems.raise_if_any()


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


def _read_row(row: SourceRow, adapter: Format | None, problems: _Problems) -> Example | Skipped | None:
    if row.record is None or adapter is None:
        problems.add(row.number, row.problem or "expected named fields, found none")
        return None
    try:
        return adapter.read(row.record)
    except RowProblem as problem:
        problems.add(row.number, str(problem))
        return None
    except RowSkip as skip:
        return Skipped(skip.reason)


class _Problems:
    def __init__(self, label: str) -> None:
        self.label = label
        self.shown: list[UserError] = []
        self.count = 0

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, row: int, message: str) -> None:
        self.count += 1
        if len(self.shown) < _SHOWN_PROBLEMS:
            self.shown.append(UserError(f"{self.label}:{row + 1} {message}"))

    def raise_if_any(self) -> None:
        if not self.count:
            return
        hidden = self.count - len(self.shown)
        rest = [UserError(f"{self.label}: {hidden:,} more rows with problems")] if hidden else []
        raise UserErrors([*self.shown, *rest])
