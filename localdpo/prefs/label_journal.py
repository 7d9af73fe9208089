"""The journal of labels: a log (see records/log.py), one line for every key, on the disk before the next pair
is shown.

{"v": 1, "source": "pairs.jsonl", "digest": "file:...", "seed": 0, "again": 0.1, "pairs": 200}
{"place": 0, "row": 17, "choice": "1", "swapped": true, "time": 1700000000.0}
{"undo": 0}
{"flag": 17, "on": true}
{"note": 17, "text": "both miss the date"}
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Final

from localdpo.core.errors import UserError
from localdpo.data.rows import InvalidRow, Skipped, read_rows
from localdpo.data.sources import open_source
from localdpo.data.types import Pair
from localdpo.prefs.checks.base import answer_text, prompt_texts
from localdpo.prefs.label import Item, Labelling, Record
from localdpo.records.log import LogTail, LogWriter, decode, encode

VERSION: Final = 1


def read_items(source: str, format_name: str | None = None) -> tuple[list[Item], str]:
    """The pairs of a source to label, and the digest of its content. Rows that are no pair are left out.

    Raises UserError for a source that cannot be read, and for one without a pair.
    """
    opened = open_source(source)
    items = []
    for row in read_rows(opened, "pairs", None, format_name):
        if isinstance(row.result, InvalidRow | Skipped):
            continue
        assert isinstance(row.result, Pair)
        prompt, _ = prompt_texts(row.result.prompt)
        sides = (answer_text(side).strip() for side in row.result.responses)
        items.append(Item(row.rows[0] + 1, prompt, *sides))
    if not items:
        raise UserError(f"{opened.label}: no pair in it to label")
    return items, opened.digest


def open_labelling(
    source: str, journal: Path, *, seed: int = 0, again: float = 0.1, format_name: str | None = None
) -> Labelling:
    """Begin to label a source, or go on where the journal ends.

    A journal keeps the seed and the share that it began with.
    Raises UserError for a source without pairs, and for a journal that is broken or of other data.
    """
    items, digest = read_items(source, format_name)
    records = _records(journal)
    if not records:
        header = {"v": VERSION, "source": source, "digest": digest, "seed": seed, "again": again}
        append(journal, {**header, "pairs": len(items)})
        return Labelling(items, seed, again, partial(append, journal))
    first = records[0]
    share = first.get("again", 0)
    if first.get("v") != VERSION or not isinstance(first.get("seed"), int) or not _is_share(share):
        raise UserError(f"{journal}:1: not the header of a label journal; give another name")
    if first.get("digest") != digest:
        raise UserError(f"{journal}: holds labels of {first.get('source')} as it was; give another name")
    state = Labelling(items, first["seed"], float(share), partial(append, journal))
    for number, record in enumerate(records[1:], start=2):
        try:
            state.replay(record)
        except ValueError as error:
            raise UserError(f"{journal}:{number}: {error}") from error
    return state


def _is_share(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1


def append(journal: Path, record: Record) -> None:
    """One line at the end of the journal, on the disk when this returns. Raises UserError for no space."""
    try:
        with LogWriter(journal, durable=True) as log:
            log.append(encode(record))
    except OSError as error:
        raise UserError(f"{journal}: cannot be written ({error.strerror})") from error


def _records(journal: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in LogTail(journal).lines():
        try:
            record = decode(line)
        except (ValueError, RecursionError) as error:
            raise UserError(
                f"{journal}:{number}: not a line of JSON: {error}; remove the line to continue"
            ) from error
        if not isinstance(record, dict):
            raise UserError(f"{journal}:{number}: expected an object")
        records.append(record)
    return records
