"""From a source to examples: detect the format, read every row with it, split pairs, collect the problems.

The one reader of rows: training, checks, conversion, labels, and prompts to be answered all go through it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from localdpo.core.errors import UserError, UserErrors
from localdpo.core.text import counted
from localdpo.data.encode import IDENTICAL
from localdpo.data.fields import PROMPTS, RowProblem, RowSkip, has_content, keeps_records
from localdpo.data.formats import Format, detect, named_format, words_are_shared
from localdpo.data.formats.pairs import ScoredAnswer, contradicts
from localdpo.data.sources import RowSource, SourceRow
from localdpo.data.types import Demonstration, Example, Kind, Pair, Rated

# Columns are gathered over this many rows, so that one row that lacks a field does not change the format.
_SAMPLE_ROWS = 100
_SHOWN_PROBLEMS = 20
_SHOWN_REASONS = 5
UNMATCHED = "no neighbouring row answers the same prompt with another score"
SHARED_WORDS = "the prompt is the words that both answers open with, since no column holds one"
CHOSEN_ONLY = "pairs, of which only the chosen answers are learnt"
REPEATED = "the chosen answer is that of the pair before"
AGAINST_SCORES = "the scores say that the rejected answer is the better one"

Record: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that is well-formed and cannot be used, with the reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class InvalidRow:
    """A row that cannot be read: the field that is wrong and what was expected."""

    message: str


@dataclass(frozen=True, slots=True)
class ReadRow:
    """What came of one row, or of two rows that make a pair together. Row numbers count from 0."""

    rows: tuple[int, ...]
    records: tuple[Record, ...]
    result: Example | Skipped | InvalidRow


@dataclass
class ReadingNotes:
    """What a person should know of rows that were read without a problem. Rows count from 0.

    Attributes:
        unread: columns that hold something and that the format does not read, with the number of their rows.
            Ids, scores, dates and other records of where a row comes from are not among them.
        chosen_only: how many pairs are read as a demonstration of their chosen answer.
        shared_words: how many prompts are the words that both answers happen to open with.
        against_scores: rows whose scores say that the rejected answer is the better one.
    """

    unread: Counter[str] = field(default_factory=Counter)
    chosen_only: int = 0
    shared_words: int = 0
    against_scores: list[int] = field(default_factory=list)

    def counts(self) -> dict[str, int]:
        """The notes in words, with how many rows each is true of; `unread` apart (see `name_unread`)."""
        counts = {
            CHOSEN_ONLY: self.chosen_only,
            SHARED_WORDS: self.shared_words,
            AGAINST_SCORES: len(self.against_scores),
        }
        return {note: count for note, count in counts.items() if count}

    def add(self, row: ReadRow, adapter: Format) -> None:
        """Note what is worth knowing of one row; skipped and invalid rows are reported elsewhere."""
        if isinstance(row.result, Skipped | InvalidRow):
            return
        for record in row.records:
            unread = [name for name in _unread(record, adapter) if not keeps_records(name)]
            if not PROMPTS.isdisjoint(unread):
                others = _other_prompts(record, adapter, [row.result])
                unread = [name for name in unread if name not in PROMPTS or name in others]
            self.unread.update(unread)
        if isinstance(row.result, Pair):
            self.shared_words += words_are_shared(adapter, row.records[0])
            if contradicts(row.records[0]):
                self.against_scores.append(row.rows[0])


def name_unread(unread: Mapping[str, int]) -> str:
    """`columns that are not read: hint, notes (30 rows); link (2 rows)`, in the order of the first row."""
    names: dict[int, list[str]] = {}
    for name, rows in unread.items():
        names.setdefault(rows, []).append(name)
    return "columns that are not read: " + "; ".join(
        f"{', '.join(names[rows])} ({counted(rows, 'row')})" for rows in sorted(names, reverse=True)
    )


def describe_dropped(dropped: dict[str, list[int]]) -> str:
    """The reasons with their counts and first rows, in one line."""
    reasons = sorted(dropped.items(), key=lambda item: -len(item[1]))
    parts = []
    for reason, rows in reasons[:_SHOWN_REASONS]:
        first = ", ".join(str(row + 1) for row in rows[:3]) + (", ..." if len(rows) > 3 else "")
        parts.append(f"{reason} ({counted(len(rows), 'row')}: {first})")
    if others := reasons[_SHOWN_REASONS:]:
        left = sum(len(rows) for _, rows in others)
        parts.append(f"{counted(len(others), 'other reason')} ({counted(left, 'row')})")
    return "; ".join(parts) or "nothing dropped"


def read_examples(
    source: RowSource,
    kind: Kind,
    limit: int | None = None,
    format_name: str | None = None,
    notes: ReadingNotes | None = None,
) -> Iterator[tuple[int, Example | Skipped]]:
    """(row number, example or Skipped) of the first `limit` rows, read lazily.

    Pairs that are read as unpaired rows give two examples of one row number. `notes` grows as rows are read.

    Raises UserError for data of the wrong kind and for none at all; UserErrors with the first problems and a
    count of the rest, after all rows were seen. From the first problem on nothing more is yielded.
    """
    problems = Problems(source.label)
    for row in read_rows(source, kind, limit, format_name, notes):
        if isinstance(row.result, InvalidRow):
            problems.add(row.rows[0], row.result.message)
        elif not problems:
            pair = row.result if kind == "unpaired" and isinstance(row.result, Pair) else None
            for example in (row.result,) if pair is None else split_pair(pair):
                yield row.rows[0], example
    problems.raise_if_any()


def read_rows(
    source: RowSource,
    kind: Kind,
    limit: int | None = None,
    format_name: str | None = None,
    notes: ReadingNotes | None = None,
) -> Iterator[ReadRow]:
    """What came of each of the first `limit` rows, problems included, in the order of the rows.

    A row of several pairs comes once for each. Where demonstrations are wanted, a pair is the demonstration
    of its chosen answer, and one with the answer of the pair before it is skipped. `notes` grows as rows are
    read.
    Raises UserError for data of the wrong kind and for none.
    """
    rows = itertools.islice(source.rows(), limit)
    sample = list(itertools.islice(rows, _SAMPLE_ROWS))
    if not sample:
        raise UserError(f"{source.label}: no rows; expected at least one")
    adapter = format_of(sample, kind, source.label, format_name)
    neighbours = _Neighbours()
    before: Example | None = None
    for row in itertools.chain(sample, rows):
        results = _read_row(row, adapter, named=format_name is not None)
        for read in neighbours.add(row, results):
            if notes is not None and adapter is not None:
                notes.add(read, adapter)
            if kind == "demonstrations" and isinstance(read.result, Pair):
                pair = read.result
                demonstration = Demonstration(
                    pair.prompt, pair.chosen, tools=pair.tools, template_kwargs=pair.template_kwargs
                )
                if demonstration == before:
                    yield replace(read, result=Skipped(REPEATED))
                    continue
                before = demonstration
                if notes is not None:
                    notes.chosen_only += 1
                yield replace(read, result=demonstration)
            else:
                yield read
    yield from neighbours.rest()


def format_of(sample: list[SourceRow], kind: Kind, label: str, format_name: str | None) -> Format | None:
    """The format that is named, or that the columns of the sample have; None when no row has fields.

    Raises UserError when none fits.
    """
    if format_name is not None:
        return named_format(format_name, kind)
    cells = [(name, value) for row in sample for name, value in (row.record or {}).items()]
    columns = {name for name, _ in cells}
    filled = {name for name, value in cells if has_content(value)}
    return detect(columns, kind, label, columns - filled) if columns else None


def source_format(source: RowSource, kind: Kind, format_name: str | None = None) -> Format | None:
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
        Rated(
            pair.prompt,
            response,
            desirable,
            of_pair=True,
            response_ended=ended,
            tools=pair.tools,
            template_kwargs=pair.template_kwargs,
        )
        for response, desirable, ended in zip(pair.responses, (True, False), pair.ended, strict=True)
    )


_Result: TypeAlias = "Example | ScoredAnswer | Skipped | InvalidRow"


def _read_row(row: SourceRow, adapter: Format | None, *, named: bool) -> list[_Result]:
    if row.record is None or adapter is None:
        return [InvalidRow(row.problem or "expected named fields, found none")]
    try:
        read = adapter.read(row.record)
        results: list[_Result] = list(read) if isinstance(read, Sequence) else [read]
        if not named:
            _check_prompts(row.record, adapter, results)
    except RowProblem as problem:
        return [InvalidRow(str(problem))]
    except RowSkip as skip:
        return [Skipped(skip.reason)]
    except RecursionError:
        return [InvalidRow("not usable JSON: nested too deep")]
    return results


def _unread(record: Record, adapter: Format) -> list[str]:
    """The columns of a row that hold something and that its format does not read."""
    return [name for name in record if name not in adapter.reads and has_content(record[name])]


def _other_prompts(record: Record, adapter: Format, results: Sequence[_Result]) -> list[str]:
    """The unread columns that look like another prompt and say what neither the prompt nor an answer says."""
    others = [name for name in _unread(record, adapter) if name in PROMPTS]
    if not others:
        return []
    sides: list[Any] = []
    for result in results:
        if isinstance(result, ScoredAnswer):
            sides += [result.prompt, result.response]
        elif not isinstance(result, Skipped | InvalidRow):
            sides += [result.prompt, *result.responses]
    said = " ".join(" ".join(_texts(sides)).split())
    return [
        name for name in others if any(" ".join(words.split()) not in said for words in _texts(record[name]))
    ]


def _check_prompts(record: Record, adapter: Format, results: Sequence[_Result]) -> None:
    """Raise RowProblem where a column beside the prompt looks like another prompt and says something else."""
    # Beside a prompt without an answer, other columns are facts about it.
    if adapter.columns == {"prompt"}:
        return
    if others := _other_prompts(record, adapter, results):
        taken = ", ".join(sorted(adapter.columns & PROMPTS)) or "what both answers open with"
        raise RowProblem(
            sorted(others)[0],
            f"another prompt beside {taken}, and it says something else; "
            "name the format to read (data.format), or put both into one column",
        )


def _texts(value: Any) -> Iterator[str]:
    """All texts in a value, but for the names of who speaks."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key not in ("role", "from"):
                yield from _texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)


@dataclass
class _Neighbours:
    """Makes pairs of ScoredAnswers: each with the first waiting one of its prompt that has another score."""

    waiting: list[tuple[SourceRow, ScoredAnswer]] = field(default_factory=list)

    def add(self, row: SourceRow, results: list[_Result]) -> Iterator[ReadRow]:
        for result in results:
            if not isinstance(result, ScoredAnswer):
                yield ReadRow((row.number,), (row.record or {},), result)
                continue
            if self.waiting and self.waiting[0][1].prompt != result.prompt:
                yield from self.rest()
            partner = next((waiting for waiting in self.waiting if waiting[1].score != result.score), None)
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
    """The first problems of a source, each with its first row, and a count of the rest."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.count = 0
        # message -> rows that have this problem, the first of them
        self._shown: dict[str, list[int]] = {}

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, row: int, message: str) -> None:
        """One problem of the row with this number from 0."""
        self.count += 1
        if message in self._shown:
            self._shown[message][0] += 1
        elif len(self._shown) < _SHOWN_PROBLEMS:
            self._shown[message] = [1, row]

    def raise_if_any(self) -> None:
        """Raise UserErrors if there was one."""
        if not self.count:
            return
        lines = []
        for message, (rows, row) in self._shown.items():
            more = f"; the same in {counted(rows - 1, 'more row')}" if rows > 1 else ""
            lines.append(f"{self.label}:{row + 1} {message}{more}")
        if hidden := self.count - sum(rows for rows, _ in self._shown.values()):
            lines.append(f"{self.label}: {counted(hidden, 'more row')} with problems")
        raise UserErrors([UserError(line) for line in lines])
