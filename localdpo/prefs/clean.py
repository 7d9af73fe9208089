"""A copy of a data set without the rows that checks flagged, and how many each reason took."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localdpo.core.errors import UserError
from localdpo.data.sources import open_source
from localdpo.prefs.check import Options, Progress, check
from localdpo.prefs.checks import CHECKS
from localdpo.prefs.checks.reading import UNREADABLE
from localdpo.prefs.output import check_output, json_lines


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What was written: rows `read`, `kept`, and dropped rows by reason (a row may have several)."""

    read: int
    kept: int
    reasons: dict[str, int]

    @property
    def dropped(self) -> int:
        """Rows that are not in the copy, each counted once."""
        return self.read - self.kept


def clean(
    source: str,
    out: Path,
    *,
    drop: Sequence[str] | None = None,
    options: Options | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Cleaning:
    """Write the rows of `source` that no check in `drop` flags (None: those with `drops`) to `out`.

    Rows keep their columns and order; one that cannot be read is never kept. A row with several pairs, and
    two rows that make a pair together, go when one of their pairs is flagged.
    Raises UserError for unknown names, and for data that `check` refuses.
    """
    wanted = names_to_drop(drop) | {UNREADABLE.name}
    check_output(out, force=force)
    report = check(source, options, progress)
    flagged = {r.check.name: r.rows for r in report.results if r.check.name in wanted and len(r.rows)}
    gone = {int(row) for rows in flagged.values() for row in rows}
    read = kept = 0
    with json_lines(out) as put:
        for row in open_source(source).rows():
            read += 1
            if row.number not in gone and row.record is not None:
                put(row.record)
                kept += 1
    return Cleaning(read, kept, {name: len(rows) for name, rows in flagged.items()})


def names_to_drop(names: Sequence[str] | None) -> set[str]:
    """The names of checks whose rows are to go. Raises UserError for one that is none, or flags no rows."""
    if names is None:
        return {entry.name for entry in CHECKS if entry.drops}
    known = {entry.name: entry for entry in CHECKS}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(known)}"
            raise UserError(f"--drop {name}: no such check; {hint}")
        if not known[name].rows:
            raise UserError(f"--drop {name}: this is about the data as a whole, it flags no rows")
    return set(names)
