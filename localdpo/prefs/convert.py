"""From one format of preference pairs to another, row by row, with what is lost on the way counted."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localdpo.core.errors import UserError
from localdpo.data.fields import RowProblem
from localdpo.data.formats import FORMATS, Format, named_format
from localdpo.data.formats.pairs import RATINGS
from localdpo.data.formats.write import SCORES, Written
from localdpo.data.rows import InvalidRow, Problems, ReadRow, Skipped, read_rows, source_format
from localdpo.data.sources import open_source
from localdpo.data.types import Pair
from localdpo.prefs.output import check_output, json_lines

Progress = Callable[[int], None]
_CANONICAL = {name: SCORES[side] for names in RATINGS for side, name in enumerate(names)}


@dataclass
class Conversion:
    """What became of the rows.

    Attributes:
        read_as, to: names of the formats.
        pairs, written: pairs read, and rows written (two a pair in formats with one answer a row).
        skipped: row numbers from 0 by reason: rows that make no pair.
        lost: how many pairs lost a column, or another thing that the format has no place for.
    """

    read_as: str
    to: str
    pairs: int = 0
    written: int = 0
    skipped: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    lost: Counter[str] = field(default_factory=Counter)


def writable() -> list[str]:
    """Names of the formats that pairs can be written in."""
    return [entry.name for entry in FORMATS if entry.write is not None]


def convert(
    source: str,
    out: Path,
    to: str,
    *,
    format_name: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write the pairs of `source` as rows of the format `to` into `out`. Memory: a few rows.

    Raises UserError for an unknown format or one that cannot be written, and UserErrors with file:row for
    rows that cannot be read or that the format has no place for; nothing is written then.
    """
    target = named_format(to, "pairs", "--to")
    if target.write is None:
        raise UserError(f"--to {to}: can be read but not written; expected one of {', '.join(writable())}")
    if format_name is not None:
        named_format(format_name, "pairs", "--format")
    check_output(out, force=force)
    opened = open_source(source)
    adapter = source_format(opened, "pairs", format_name)
    report = Conversion(adapter.name if adapter else "none", to)
    problems = Problems(opened.label)
    with json_lines(out) as put:
        for row in read_rows(opened, "pairs", None, format_name):
            for record in _write(row, adapter, target, report, problems):
                put(record)
            if progress is not None:
                progress(row.rows[-1] + 1)
        problems.raise_if_any()
        if not report.written:
            reasons = "; ".join(f"{reason} ({len(rows):,})" for reason, rows in report.skipped.items())
            raise UserError(f"{opened.label}: no row makes a pair: {reasons}")
    return report


def _write(
    row: ReadRow, adapter: Format | None, target: Format, report: Conversion, problems: Problems
) -> tuple[dict[str, Any], ...]:
    if isinstance(row.result, InvalidRow):
        problems.add(row.rows[0], row.result.message)
        return ()
    if isinstance(row.result, Skipped):
        report.skipped[row.result.reason].extend(row.rows)
        return ()
    assert isinstance(row.result, Pair)
    assert adapter is not None
    assert target.write is not None
    columns = other_columns(row, adapter)
    try:
        written = target.write(row.result, columns)
    except RowProblem as problem:
        problems.add(row.rows[0], f"cannot be written as {target.name}: {problem}")
        return ()
    report.pairs += 1
    report.written += len(written.records)
    report.lost.update(_lost(columns, written))
    return written.records


def other_columns(row: ReadRow, adapter: Format) -> dict[str, Any]:
    """The columns that are not part of the pair, scores under their one name.

    Of two rows that make a pair together, both rows' columns: what differs is the second's.
    """
    found: dict[str, Any] = {}
    for record in row.records:
        for name, value in record.items():
            if name in _CANONICAL or name not in adapter.reads:
                found[_CANONICAL.get(name, name)] = value
    return found


def _lost(columns: Mapping[str, Any], written: Written) -> list[str]:
    record = written.records[0]
    held = {_CANONICAL.get(name, name) for name in record}
    return [*(name for name in columns if name not in held and columns[name] is not None), *written.lost]
