"""`localdpo runs`: the table of runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from localdpo.core.text import age, printable
from localdpo.out import print_json, say
from localdpo.records.metrics import ALL_TIED

if TYPE_CHECKING:
    from localdpo.out.console import Console
    from localdpo.records.summary import RunSummary

HEADINGS: Final = ("name", "state", "loss", "beta", "model", "step", "accuracy", "margin", "kl", "when")
_NUMBERS: Final = frozenset({"beta", "step", "accuracy", "margin", "kl"})


def runs(
    runs_dir: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array; times in Unix seconds.")] = False,
) -> None:
    """List the runs, the latest first. Accuracy, margin and KL are those of the last evaluation."""
    summaries = read_summaries(runs_dir, lambda line: say(line, error=True))
    if not summaries:
        say(f"{printable(str(runs_dir))}: no runs", error=True)
    if as_json:
        print_json([dataclasses.asdict(summary) for summary in summaries])
        return
    from localdpo.out.console import Console

    console = Console()
    rows = [row_of(summary, time.time()) for summary in summaries]
    if console.is_terminal:
        _print_table(console, rows, runs_dir)
    else:
        for line in text_table([HEADINGS, *rows]):
            say(line)
    for summary in summaries:
        if summary.why is not None:
            say(printable(f"{summary.name}: {summary.why}"), error=True)


def read_summaries(runs_dir: Path, note: Callable[[str], None]) -> list[RunSummary]:
    """The summary of every run in `runs_dir`, the latest first; `note` is told of each damaged log."""
    from localdpo.records.checkpoints import read_log
    from localdpo.records.rundir import list_runs
    from localdpo.records.summary import summarise

    # The lock before the log: a run that ends in between is then shown as running, never as crashed.
    looks = [(run, run.is_running()) for run in list_runs(runs_dir)]
    logs = [read_log(run, note, alive=running) for run, running in looks]
    return [summarise(run.name, log, running) for (run, running), log in zip(looks, logs, strict=True)]


def row_of(summary: RunSummary, now: float) -> tuple[str, ...]:
    """The cells of a run, in the order of HEADINGS. What is not known is `-`."""
    total = f"/{summary.total}" if summary.total is not None else ""
    numbers = (summary.margin, summary.kl)
    accuracy = (
        ALL_TIED if summary.all_tied else "-" if summary.accuracy is None else f"{summary.accuracy:.3f}"
    )
    return (
        summary.name,
        summary.state,
        summary.loss or "-",
        "-" if summary.beta is None else f"{summary.beta:g}",
        summary.model or "-",
        f"{summary.step}{total}",
        accuracy,
        *("-" if number is None else f"{number:.3f}" for number in numbers),
        "-" if summary.updated is None else age(now - summary.updated),
    )


def text_table(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows of cells as aligned lines, two spaces between columns."""
    rows = [tuple(map(printable, row)) for row in rows]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


def _print_table(console: Console, rows: list[tuple[str, ...]], runs_dir: Path) -> None:
    from rich.table import Table

    from localdpo.out.console import Text

    if not rows:
        console.print(Text(f"no runs in {runs_dir}; start one with `localdpo train RECIPE`"))
        return
    table = Table()
    for heading in HEADINGS:
        table.add_column(
            heading, justify="right" if heading in _NUMBERS else "left", no_wrap=heading != "model"
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)
