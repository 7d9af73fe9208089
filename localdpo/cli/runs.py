"""`localdpo runs`, `ctl` and `report`: list the runs, control one that is training, write one as a page."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from localdpo.cli.options import RunArgument, RunsDirOption, page_path
from localdpo.core.errors import UserError
from localdpo.core.names import program
from localdpo.core.text import age, printable
from localdpo.out import print_json, say
from localdpo.records.control import COMMANDS, Command, send, wait_for
from localdpo.records.rundir import find_run, list_runs

if TYPE_CHECKING:
    from localdpo.records.control import Acknowledgement
    from localdpo.records.rundir import RunDir
    from localdpo.records.runs import RunSummary

HEADINGS: Final = ("name", "state", "loss", "beta", "model", "step", "accuracy", "margin", "kl", "when")
# Usually a worker that is taking steps answers sooner.
_PATIENCE_SECONDS: Final = 2.0
_MEANINGS: Final = "; ".join(f"{command}: {meaning}" for command, meaning in COMMANDS.items())


def runs(
    runs_dir: RunsDirOption = Path("runs"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON array; times in Unix seconds.")
    ] = False,
) -> None:
    """List the runs, the latest first. Reward accuracy, margin and KL are those of the last evaluation."""
    summaries = read_summaries(runs_dir, lambda line: say(line, error=True))
    if not summaries:
        say(f"{printable(str(runs_dir))}: no runs", error=True)
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
            say(printable(f"{summary.name}: {summary.why}"), error=True)


def read_summaries(runs_dir: Path, note: Callable[[str], None]) -> list[RunSummary]:
    """The summary of every run in `runs_dir`, the latest first; each damaged log is reported to `note`."""
    from localdpo.records.runs import RunReader

    readers = [RunReader(run) for run in list_runs(runs_dir)]
    for reader in readers:
        reader.refresh()
        if (damage := reader.damage()) is not None:
            note(damage)
    return [reader.summary for reader in readers]


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
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """Pause, resume, checkpoint, evaluate or stop a run that is training, from anywhere."""
    if not save and command != "stop":
        raise UserError(f"--no-save works only with stop, not with {command}")
    found = find_run(runs_dir, run)
    answer = _wait(found, send(found, command, save=save), timeout)
    if answer is None:
        raise UserError(
            f"{found.path}: no answer within {timeout:g} s: {_busy(found)}; the command runs after that"
        )
    if not answer.ok:
        raise UserError(f"{found.path}: {answer.message}")
    say(answer.message)


def _wait(run: RunDir, id: str, timeout: float) -> Acknowledgement | None:
    """Wait for the answer; if it takes long, print on stderr what the worker is busy with."""
    answer = wait_for(run, id, min(_PATIENCE_SECONDS, timeout))
    if answer is None and timeout > _PATIENCE_SECONDS:
        say(f"waiting: {_busy(run)}", error=True)
        answer = wait_for(run, id, timeout - _PATIENCE_SECONDS)
    return answer


def _busy(run: RunDir) -> str:
    """What the worker is doing now."""
    from localdpo.records.events import effective, read_events
    from localdpo.records.progress import event_age, progress_of
    from localdpo.records.wording import PHASES

    progress = progress_of(effective(read_events(run.events)))
    quiet = event_age(progress, time.time())
    last = "" if quiet is None else f", last event {age(quiet)}"
    of = "" if progress.total is None else f" of {progress.total}"
    return f"the worker is busy ({PHASES[progress.phase]}, step {progress.step}{of}{last})"


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
    runs_dir: RunsDirOption = Path("runs"),
) -> None:
    """Write one HTML file about a run: charts, recipe, notices, samples, answers and latest evaluation."""
    from localdpo.evals.report import report_values
    from localdpo.pages import write_page

    found = find_run(runs_dir, run)
    path = html or found.path / "report.html"
    write_page(path, "report", **report_values(found, lambda line: say(line, error=True)))
    say(f"written: {path}")
