"""`localdpo report`: a run as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="Name of the run. Default: the latest.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Where to. Default: report.html of the run.")
    ] = None,
    runs_dir: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs.")] = Path("runs"),
) -> None:
    """Write a run as one HTML file: charts, recipe, notices, samples, answers and the latest evaluation."""
    from localdpo.core.errors import UserError
    from localdpo.evals.report import report_values
    from localdpo.out import say
    from localdpo.pages import write_page
    from localdpo.records.rundir import find_run

    found = find_run(runs_dir, run)
    path = html or found.path / "report.html"
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist")
    write_page(path, "report", **report_values(found, lambda line: say(line, error=True)))
    say(f"written: {path}")
