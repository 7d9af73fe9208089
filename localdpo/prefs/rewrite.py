"""New files of JSON lines from a data set: without the rows that checks flagged, in two parts, or in another
format."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localdpo.core.atomic import clean_leftovers, no_space_error, out_of_space, published_file
from localdpo.core.errors import UserError
from localdpo.core.names import command_line
from localdpo.core.text import counted
from localdpo.data.fields import CUT, FINISH_REASON, RowProblem
from localdpo.data.formats import FORMATS, Format, named_format
from localdpo.data.formats.pairs import RATINGS
from localdpo.data.formats.write import SCORES
from localdpo.data.rows import InvalidRow, Problems, ReadRow, Skipped, read_rows, source_format
from localdpo.data.sources import open_source
from localdpo.data.types import Pair
from localdpo.prefs.check import CHECKS, UNREADABLE, Progress, check
from localdpo.prefs.checks.base import CheckSettings, prompt_texts
from localdpo.prefs.checks.lengths import CUT_REJECTED
from localdpo.prefs.shingles import Words

SUFFIXES = (".jsonl", ".ndjson")
SFT = "sft"
"""What `--to` calls prompt-completion, the rows for supervised fine-tuning."""
Put = Callable[[Mapping[str, Any]], None]
_CANONICAL = {name: SCORES[side] for names in RATINGS for side, name in enumerate(names)}


def check_output(path: Path, *, force: bool) -> None:
    """Raise UserError unless `path` can become a new JSONL file."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path}: rows are written as JSON lines; give a name that ends in .jsonl")
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist")
    if path.exists() and not force:
        raise UserError(f"{path}: exists already; give another name, or --force to replace it")


@contextlib.contextmanager
def json_lines(path: Path) -> Iterator[Put]:
    """A function that writes a row; the file gets its name when the block ends without an error.

    Memory: one row. Raises UserError when the disk is full, or the folder cannot be written.
    """
    written = 0
    try:
        clean_leftovers(path.parent, shared=True)
        with published_file(path) as file:

            def put(row: Mapping[str, Any]) -> None:
                nonlocal written
                written += file.write(as_line(row))

            yield put
    except OSError as error:
        if out_of_space(error):
            raise no_space_error(path, written) from error
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


def as_line(row: Mapping[str, Any]) -> bytes:
    """A row as one line of JSON. Values that JSON has no word for (times of Arrow) become text.

    Half of a surrogate pair, which UTF-8 has no bytes for, stays as JSON's escape.
    """
    try:
        return json.dumps(row, ensure_ascii=False, default=str).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(row, default=str).encode() + b"\n"


# --- clean -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What was written: rows `read` and `kept`, and dropped rows by reason (a row may have several)."""

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
    settings: CheckSettings | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Cleaning:
    """Write the rows of `source` that no check in `drop` flags (None: those with `drops`) to `out`.

    Rows keep their columns and order; one that cannot be read is never kept. A row with several pairs, and
    two rows that make a pair together, go when one of their pairs is flagged.
    Raises UserError for unknown names, and for data that `check` refuses.
    """
    names = names_to_drop(drop) | {UNREADABLE.name}
    check_output(out, force=force)
    report = check(source, settings, progress)
    flagged = {r.check.name: r.numbers for r in report.results if r.check.name in names and len(r.numbers)}
    dropped = {int(row) for rows in flagged.values() for row in rows}
    read = kept = 0
    with json_lines(out) as put:
        for row in open_source(source).rows():
            read += 1
            if row.number not in dropped and row.record is not None:
                put(row.record)
                kept += 1
    return Cleaning(read, kept, {name: len(rows) for name, rows in flagged.items()})


def names_to_drop(names: Sequence[str] | None) -> set[str]:
    """The checks whose rows to drop. Raises UserError for an unknown one, or one that flags no rows."""
    if names is None:
        return {entry.name for entry in CHECKS if entry.drops}
    known = {entry.name: entry for entry in CHECKS}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(known)}"
            raise UserError(f"--drop {name}: no such check; {hint}")
        if not known[name].rows:
            raise UserError(f"--drop {name}: it is about the data set, and flags no rows")
    return set(names)


# --- split -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Split:
    """Rows written to `train` and `valid`, of how many `prompts`; `skipped` rows by reason."""

    train: int
    valid: int
    prompts: int
    skipped: dict[str, int]


def split_by_prompt(prompts: Sequence[str], wanted: int, seed: int) -> list[bool]:
    """For each pair, by the id of its prompt, whether it is held out; no prompt is on both sides.

    Prompts are taken in an order drawn by the seed, so that more pairs of other prompts change little; at
    most `wanted` pairs are held out, and exactly so many when no prompt comes twice.
    """
    pairs = Counter(prompts)
    held: set[str] = set()
    left = wanted
    for name in sorted(pairs, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
        if pairs[name] <= left:
            held.add(name)
            left -= pairs[name]
    return [name in held for name in prompts]


def split(
    source: str,
    train: Path,
    valid: Path,
    *,
    fraction: float = 0.1,
    count: int | None = None,
    seed: int = 0,
    format_name: str | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Split:
    """Write the rows of `source` into two files such that no prompt is in both; columns and order stay.

    `count` rows (None: the share `fraction`) go into `valid`; a few less where prompts come more than once.
    Prompts are the same if they differ in case, punctuation, white space or system messages only. Rows that
    training would drop are left out. Memory: a hash a row.

    Raises UserError where one part would be empty, and UserErrors with file:row for rows that cannot be read;
    nothing is written then.
    """
    if train == valid:
        raise UserError(f"{valid}: given twice; the two parts need files of their own")
    for path in (train, valid):
        check_output(path, force=force)
    opened = open_source(source)
    prompts: dict[int, str] = {}
    skipped: Counter[str] = Counter()
    problems = Problems(opened.label)
    for read in read_rows(opened, "prompts", None, format_name):
        if isinstance(read.result, InvalidRow):
            problems.add(read.rows[0], read.result.message)
        elif isinstance(read.result, Skipped):
            skipped[read.result.reason] += 1
        else:
            subject = prompt_texts(read.result.prompt)[1]
            prompts.update(dict.fromkeys(read.rows, f"{Words([subject]).keys()[0] or subject}"))
        if progress is not None:
            progress(read.rows[-1] + 1)
    problems.raise_if_any()
    wanted = round(fraction * len(prompts)) if count is None else count
    held = dict(zip(prompts, split_by_prompt(list(prompts.values()), wanted, seed), strict=True))
    if len(set(held.values())) < 2:
        raise UserError(
            f"{opened.label}: {counted(len(prompts), 'row')} of "
            f"{counted(len(set(prompts.values())), 'prompt')}; with "
            f"{counted(wanted, 'row')} held out one part would be empty; give another --valid-count"
        )
    with json_lines(train) as put_train, json_lines(valid) as put_valid:
        for row in opened.rows():
            if row.number in held:
                assert row.record is not None
                (put_valid if held[row.number] else put_train)(row.record)
    return Split(
        len(held) - sum(held.values()), sum(held.values()), len(set(prompts.values())), dict(skipped)
    )


# --- convert ---------------------------------------------------------------------------------------------


@dataclass
class Conversion:
    """What conversion did with the rows.

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
    """What `--to` takes: names of the formats that pairs can be written in, and `sft`."""
    return [*(entry.name for entry in FORMATS if entry.write is not None), SFT]


def target_format(name: str) -> Format:
    """The format of `--to`, or of `--to sft`. Raises UserError for one that cannot be written."""
    if name == SFT:
        return named_format("prompt-completion", "demonstrations")
    known = {entry.name: entry for entry in FORMATS}
    if name in known and known[name].write is not None:
        return known[name]
    if name in known:
        raise UserError(f"--to {name}: can be read but not written; expected one of {', '.join(writable())}")
    near = difflib.get_close_matches(name, writable(), n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(writable())}"
    raise UserError(f"--to {name}: no such format; {hint}")


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
    target = target_format(to)
    if format_name is not None:
        named_format(format_name, "pairs", "--format")
    check_output(out, force=force)
    opened = open_source(source)
    adapter = source_format(opened, "pairs", format_name)
    report = Conversion(adapter.name if adapter else "none", target.name)
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
    columns = _other_columns(row, adapter)
    try:
        written = target.write(row.result, columns)
        is_told = row.result.rejected_ended or FINISH_REASON in written.records[0]
        if target.kind == "pairs" and not is_told:
            # Training on what was written would end a rejected answer that was cut.
            how = command_line("prefs", "clean", "IN", "OUT", "--drop", CUT_REJECTED.name)
            raise RowProblem(
                FINISH_REASON, f"{CUT}, which the format has no place for; leave such rows out: {how}"
            )
    except RowProblem as problem:
        problems.add(row.rows[0], f"cannot be written as {target.name}: {problem}")
        return ()
    report.pairs += 1
    report.written += len(written.records)
    held = {_CANONICAL.get(name, name) for name in written.records[0]}
    report.lost.update(name for name in columns if name not in held and columns[name] is not None)
    report.lost.update(written.lost)
    return written.records


def _other_columns(row: ReadRow, adapter: Format) -> dict[str, Any]:
    """The columns that are not part of the pair, scores under their one name.

    Of two rows that make a pair together, both rows' columns: what differs is the second's.
    """
    columns: dict[str, Any] = {}
    for record in row.records:
        for name, value in record.items():
            if name in _CANONICAL or name not in adapter.reads:
                columns[_CANONICAL.get(name, name)] = value
    return columns
