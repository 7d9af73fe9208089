"""The files of an evaluation: `runs/NAME/eval/NAME.json`, `.md` and `.html`, each written whole."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from localdpo.core.atomic import entries, write_bytes, write_text
from localdpo.core.errors import UserError
from localdpo.evals.table import heading, labels_of, markdown, tables
from localdpo.pages import render
from localdpo.records.log import seal, unseal
from localdpo.records.rundir import RunDir

FOLDER: Final = "eval"
# Transcripts on the page; all of them are in the JSON file.
SHOWN_ROWS: Final = 50


def folder_of(run: RunDir) -> Path:
    """Where a run's evaluations are."""
    return run.path / FOLDER


def write_record(run: RunDir, record: Mapping[str, Any]) -> Path:
    """Write a record in its three forms; the path of the JSON file. Raises UserError for a full disk."""
    folder = folder_of(run)
    folder.mkdir(exist_ok=True)
    path = folder / f"{record['name']}.json"
    write_text(path.with_suffix(".md"), markdown(record))
    write_text(path.with_suffix(".html"), page(record))
    write_bytes(path, seal(json_text(record)))
    return path


def json_text(record: Mapping[str, Any]) -> str:
    """The JSON text of a record; in its file a checksum stands last, see `seal`."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def read_record(path: Path) -> dict[str, Any]:
    """A record from its JSON file. Raises UserError when it is not one."""
    try:
        record = json.loads(unseal(path.read_bytes()))
        if not isinstance(record, dict) or record.get("v") != 1:
            raise ValueError("expected an object with v 1")
        # By another hand it may lack anything: what cannot be shown is refused here.
        markdown(record), page_values(record)
    except (
        OSError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ) as error:
        raise UserError(f"{path}: no evaluation ({error}); make it again with `localdpo eval`") from error
    return record


def latest_record(run: RunDir) -> dict[str, Any] | None:
    """The evaluation that was written last, None if there is none. Raises UserError when it is damaged."""
    found = sorted(entries(folder_of(run), "*.json"), key=lambda path: (path.stat().st_mtime, path.name))
    return read_record(found[-1]) if found else None


def page(record: Mapping[str, Any]) -> str:
    """The record as one self-contained HTML page."""
    return render("eval", **page_values(record))


def page_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """What the page shows: tables, conclusion, and the first SHOWN_ROWS prompts with answers and verdicts."""
    return {
        "title": f"{record['run']}: evaluation {record['name']}",
        "heading": heading(record),
        "conclusion": record["conclusion"],
        "tables": tables(record),
        "labels": labels_of(record),
        "rows": record["rows"][:SHOWN_ROWS],
        "total": len(record["rows"]),
    }
