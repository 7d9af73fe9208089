"""The files of an evaluation: `runs/NAME/eval/NAME.json`, `.md` and `.html`, each written whole."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from localdpo.core.atomic import write_text
from localdpo.core.errors import UserError
from localdpo.evals.table import heading, labels_of, markdown, tables
from localdpo.pages import render
from localdpo.records.evaluations import evaluation_files, read_evaluation, write_evaluation
from localdpo.records.log import DAMAGE
from localdpo.records.rundir import RunDir

# Transcripts on the page; all of them are in the JSON file.
SHOWN_ROWS: Final = 50


def write_record(run: RunDir, record: Mapping[str, Any]) -> Path:
    """Write a record in its three forms; the path of the JSON file. Raises UserError for a full disk."""
    run.evaluations.mkdir(exist_ok=True)
    write_text(run.evaluations / f"{record['name']}.md", markdown(record))
    write_text(run.evaluations / f"{record['name']}.html", page(record))
    return write_evaluation(run, record)


def read_record(path: Path) -> Mapping[str, Any]:
    """A record from its JSON file. Raises UserError when it is not one."""
    record = read_evaluation(path).record
    try:
        # By another hand it may lack anything: what cannot be shown is refused here.
        markdown(record), page_values(record)
    except (*DAMAGE, LookupError, ArithmeticError) as error:
        raise UserError(f"{path}: not an evaluation that `localdpo eval` wrote ({error})") from error
    return record


def latest_record(run: RunDir) -> Mapping[str, Any] | None:
    """The evaluation that was written last, None if there is none. Raises UserError when it is damaged."""
    files = evaluation_files(run)
    return read_record(files[0]) if files else None


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
