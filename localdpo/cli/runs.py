"""`localdpo runs`, `ctl` and `report`: list the runs, control one that is training, write one as a page.

`localdpo runs sync` shows one to trackers.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Final

import typer

from localdpo.cli import options as opt
from localdpo.cli.plain import print_table
from localdpo.core.errors import UserError, UserErrors
from localdpo.core.names import command_line
from localdpo.out import note, print_json, result
from localdpo.records.catalog import find_series, read_all
from localdpo.records.checkpoints import read_log
from localdpo.records.control import COMMANDS, Command, steer
from localdpo.records.rundir import find_run
from localdpo.records.runs import RUN_COLUMNS

HEADINGS: Final = ("name", "state", "loss", "beta", "model", "step", "accuracy", "margin", "kl", "when")
_MEANINGS: Final = "; ".join(f"{command}: {meaning}" for command, meaning in COMMANDS.items())

runs_group = typer.Typer(
    name="runs", invoke_without_command=True, pretty_exceptions_enable=False, rich_markup_mode=None
)


@runs_group.callback()
def runs(
    context: typer.Context,
    runs_dir: opt.RunsDirOption = Path("runs"),
    as_json: opt.JsonOption = False,
) -> None:
    """List the runs, the latest first. Reward accuracy, margin and KL are those of the last evaluation.

    The runs of a series of rounds or of a sweep stand below it, under the names by which they are found.
    """
    if context.invoked_subcommand is None:
        list_all(runs_dir, as_json)
    elif runs_dir != Path("runs") or as_json:
        raise UserError(f"give the options of `runs {context.invoked_subcommand}` behind it")


def list_all(runs_dir: Path, as_json: bool) -> None:
    """Print the table of the runs, or one JSON array."""
    summaries = read_all(runs_dir, note)
    if not summaries:
        note(f"{runs_dir}: no runs")
    if as_json:
        print_json([summary.to_json() for summary in summaries])
        return
    from localdpo.out.console import Console, Text

    console = Console()
    now = time.time()
    rows = [[RUN_COLUMNS[name].text(summary, now) or "-" for name in HEADINGS] for summary in summaries]
    if console.is_terminal and not rows:
        console.print(Text(f"no runs in {runs_dir}; start one with `{command_line('train', 'RECIPE')}`"))
    else:
        numbers = [name for name in HEADINGS if not RUN_COLUMNS[name].is_text and name != HEADINGS[-1]]
        print_table(console, HEADINGS, rows, right=numbers, wrapped=("model",))
    for summary in summaries:
        if summary.why is not None:
            note(f"{summary.name}: {summary.why}")


# --- ctl -------------------------------------------------------------------------------------------------


def ctl(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.", autocompletion=opt.run_names)],
    command: Annotated[Command, typer.Argument(metavar="COMMAND", help=f"{_MEANINGS}.")],
    save: Annotated[
        bool, typer.Option("--save/--no-save", help="With stop: save a checkpoint first, or not.")
    ] = True,
    timeout: Annotated[
        float,
        typer.Option(
            metavar="SECONDS", min=0.0, callback=opt.finite, help="How long to wait for the answer."
        ),
    ] = 60.0,
    as_json: opt.JsonOption = False,
    runs_dir: opt.RunsDirOption = Path("runs"),
) -> None:
    """Pause, resume, checkpoint, evaluate or stop a training run."""
    if not save and command != "stop":
        raise UserError(f"--no-save works only with stop, not with {command}")

    message = steer(find_run(runs_dir, run), command, note, save=save, timeout=timeout)
    result({"run": run, "command": command, "message": message}, [message], as_json=as_json)


# --- sync ------------------------------------------------------------------------------------------------


@runs_group.command()
def sync(
    run: opt.RunArgument = None,
    to: Annotated[
        list[str] | None,
        typer.Option(metavar="TRACKER", help="wandb, tensorboard, trackio or mlflow; repeatable."),
    ] = None,
    as_json: opt.JsonOption = False,
    runs_dir: opt.RunsDirOption = Path("runs"),
) -> None:
    """Show a run that has ended to trackers.

    They get all that they do not have yet. Default: the trackers in its recipe.
    """
    from localdpo.launch.reporting import problem_of, start_reporter, trackers_of
    from localdpo.trackers.registry import TRACKERS, require_packages

    found = find_run(runs_dir, run)
    if found.is_running():
        raise UserError(f"{found.path}: this run is training; show it to trackers when it has ended")
    events = read_log(found, note, alive=False)
    names = list(dict.fromkeys(to or trackers_of(events)))
    if not names:
        raise UserError(f"{found.path}: its recipe names no tracker; name one with --to")
    if unknown := [name for name in names if name not in TRACKERS]:
        raise UserError(f"--to {unknown[0]}: expected one of {', '.join(TRACKERS)}")
    require_packages(names, "--to" if to else "report_to")
    jobs = {name: start_reporter(found, name, "run the same command again") for name in names}
    done, problems = dict[str, str](), list[UserError]()
    try:
        for name, job in jobs.items():
            job.wait()
            if (problem := problem_of(job)) is None:
                done[name] = job.report()
            else:
                problems.append(UserError(problem))
    finally:
        for job in jobs.values():
            job.stop(patience=1.0)
    if done or as_json:
        result({"run": found.name, "reported": done}, done.values(), as_json=as_json)
    if problems:
        raise UserErrors(problems)


# --- report ----------------------------------------------------------------------------------------------


def report(
    run: opt.RunArgument = None,
    html: opt.HtmlOption = None,
    as_json: opt.JsonOption = False,
    runs_dir: opt.RunsDirOption = Path("runs"),
) -> None:
    """Write one HTML page about a run, rounds or a sweep.

    Of a run: charts, recipe, notices, samples, answers and latest evaluation. Of rounds: their table, win
    rates, KL and length. Of a sweep: its table, and accuracy over KL. Without --html it is report.html in the
    folder of the run or series.
    """
    from localdpo.evals.report import report_values, series_values
    from localdpo.pages import write_page

    series = None if run is None else find_series(runs_dir, run)
    found = series or find_run(runs_dir, run)
    path = html or found.path / "report.html"
    if series is not None:
        write_page(path, "series", **series_values(series))
    else:
        write_page(path, "report", **report_values(found, note))
    result({"run": found.name, "html": str(path)}, [f"written: {path}"], as_json=as_json)
