"""`localdpo runs`, `ctl` and `report`: list the runs, control one that is training, write one as a page."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from localdpo.cli.options import JsonOption, RunArgument, RunsDirOption, page_path
from localdpo.core.errors import UserError
from localdpo.core.names import program
from localdpo.out import note, print_json, result
from localdpo.records.control import COMMANDS, Command
from localdpo.records.rundir import find_run

if TYPE_CHECKING:
    from localdpo.records.runs import RunSummary

HEADINGS: Final = ("name", "state", "loss", "beta", "model", "step", "accuracy", "margin", "kl", "when")
_MEANINGS: Final = "; ".join(f"{command}: {meaning}" for command, meaning in COMMANDS.items())


def runs(
    runs_dir: RunsDirOption = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """List the runs, the latest first. Reward accuracy, margin and KL are those of the last evaluation."""
    from localdpo.records.runs import read_summaries

    summaries = read_summaries(runs_dir, note)
    if not summaries:
        note(f"{runs_dir}: no runs")
    if as_json:
        print_json([summary.to_json() for summary in summaries])
        return
    from localdpo.cli.plain import print_table
    from localdpo.out.console import Console, Text
    from localdpo.records.runs import RUN_COLUMNS

    console = Console()
    rows = [row_of(summary, time.time()) for summary in summaries]
    if console.is_terminal and not rows:
        console.print(Text(f"no runs in {runs_dir}; start one with `{program()} train RECIPE`"))
    else:
        numbers = [name for name in HEADINGS if not RUN_COLUMNS[name].is_text and name != HEADINGS[-1]]
        print_table(console, HEADINGS, rows, right=numbers, wrapped=("model",))
    for summary in summaries:
        if summary.why is not None:
            note(f"{summary.name}: {summary.why}")


def row_of(summary: RunSummary, now: float) -> tuple[str, ...]:
    """The cells of a run, in the order of HEADINGS; `-` for an unknown value."""
    from localdpo.records.runs import RUN_COLUMNS

    return tuple(RUN_COLUMNS[heading].text(summary, now) or "-" for heading in HEADINGS)


# --- ctl -------------------------------------------------------------------------------------------------


def ctl(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")],
    command: Annotated[Command, typer.Argument(metavar="COMMAND", help=f"{_MEANINGS}.")],
    save: Annotated[
        bool, typer.Option("--save/--no-save", help="With stop: save a checkpoint first, or not.")
    ] = True,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="How long to wait for the answer.")
    ] = 60.0,
    as_json: JsonOption = False,
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """Pause, resume, checkpoint, evaluate or stop a run that is training, from anywhere."""
    if not save and command != "stop":
        raise UserError(f"--no-save works only with stop, not with {command}")
    from localdpo.launch.steer import steer

    message = steer(find_run(runs_dir, run), command, note, save=save, timeout=timeout)
    result({"run": run, "command": command, "message": message}, [message], as_json=as_json)


# --- report ----------------------------------------------------------------------------------------------


def report(
    run: RunArgument = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            callback=page_path,
            help="File to write. Default: report.html in the run's folder.",
        ),
    ] = None,
    as_json: JsonOption = False,
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """Write one HTML file about a run: charts, recipe, notices, samples, answers and latest evaluation."""
    from localdpo.evals.report import report_values
    from localdpo.pages import write_page

    found = find_run(runs_dir, run)
    path = html or found.path / "report.html"
    write_page(path, "report", **report_values(found, note))
    result({"run": found.name, "html": str(path)}, [f"written: {path}"], as_json=as_json)
