"""`localdpo rounds`: rounds of training on the policy's own answers, as one series of runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localdpo.cli import options as opt
from localdpo.cli.judging import carry_out, with_judge_options
from localdpo.cli.plain import print_plain, print_table
from localdpo.cli.train import make_request, train_and_watch
from localdpo.cli.watch import open_dashboard
from localdpo.core.names import command_line
from localdpo.launch.processes import Job
from localdpo.out import has_screen, note, print_json, result, say
from localdpo.records.rundir import RunDir, RunLock
from localdpo.records.series import (
    HEADINGS,
    RoundsDir,
    SeriesDir,
    SeriesOptions,
    SeriesRecord,
    cells,
    closing_lines,
    read_record,
    write_options,
)
from localdpo.records.wording import resume_command, run_words

if TYPE_CHECKING:
    from localdpo.launch.rounds import RoundsPlan


@with_judge_options
def rounds(
    *,
    recipe: opt.RecipeArgument = None,
    overrides: opt.OverridesArgument = None,
    wanted: Annotated[
        int | None, typer.Option("--rounds", metavar="N", min=1, help="Rounds at most. Default: 3.")
    ] = None,
    run: opt.SeriesOption = None,
    runs_dir: opt.RunsDirOption = Path("runs"),
    resume: opt.ResumeOption = False,
    plain: opt.PlainOption = False,
    limits: dict[str, Any],
    forget_options: opt.ForgetOption = False,
    as_json: opt.JsonOption = False,
    dry_run: opt.DryRunOption = False,
) -> None:
    """Train round by round on the policy's own answers.

    Each round samples answers to the recipe's rounds.prompts, judges, trains and evaluates; the series ends
    when that no longer helps. Known as iterative, on-policy or online DPO, and with the model as its own
    judge as self-rewarding. A series is resumed with the options that it was begun with, but for those that
    are given.
    """
    from localdpo.launch.begin import known_run, open_run, resolve_recipe
    from localdpo.launch.rounds import kept_options, plan_rounds, preview_lines, wanted_rounds

    request = make_request(recipe, overrides, run, runs_dir, resume, kind=RoundsDir)
    known = known_run(request)
    options = SeriesOptions(limits).above(kept_options(known, forget=forget_options))
    at_most = wanted_rounds(known, wanted)
    plan = plan_rounds(resolve_recipe(request, known, note), options)
    lines = preview_lines(plan, runs_dir / (run or request.stem), at_most)
    if dry_run:
        result({"preview": lines}, lines, as_json=as_json)
        return
    series = open_run(request, note)
    assert isinstance(series, RoundsDir)
    for line in lines:
        note(line)
    if plain or as_json or not has_screen():
        raise typer.Exit(make_and_print(series, plan, at_most, as_json))
    raise typer.Exit(
        make_beside_dashboard(series, options, lambda: print_series(series, read_record(series), False))
    )


def make_and_print(series: RoundsDir, plan: RoundsPlan, wanted: int, as_json: bool) -> int:
    """Make the series here, with progress on the terminal; the exit code of the command."""
    from localdpo.judging.cost import Budget
    from localdpo.launch.rounds import Hands, run_rounds

    def show(record: SeriesRecord) -> None:
        note(", ".join(f"{h} {c}" for h, c in zip(HEADINGS, cells(record.rounds[-1]), strict=True)))

    hands = Hands(
        ask=partial(carry_out, budget=Budget(plan.max_usd)),
        train=lambda run: train_and_watch(run, False, True, is_part=True),
        note=note,
        on_round=show,
    )
    record, code = run_rounds(series, plan, wanted, hands)
    print_series(series, record, as_json)
    return code


def print_series(series: RoundsDir, record: SeriesRecord, as_json: bool) -> None:
    """Print the table of the rounds, why they ended, and what to do next."""
    from localdpo.out.console import Console

    if as_json:
        print_json({"name": series.name, "path": str(series.path), **record.to_json()})
        return
    console = Console()
    print_table(console, HEADINGS, [cells(row) for row in record.rounds], right=HEADINGS[1:])
    best = record.best
    words = []
    if best is not None:
        words = [f"export it: {command_line('export', *run_words(RunDir(series.path / best.name)))}"]
    if record.ended is None:
        words = [f"stopped; resume it with: {resume_command(series)}"]
    for line in (*closing_lines(record), *words):
        print_plain(console, line)


def make_beside_dashboard(series: SeriesDir, options: SeriesOptions, show: Callable[[], None]) -> int:
    """Make the series in a process of its own and show it in the dashboard until the user leaves.

    `show` prints what came of it when it is made. The exit code of the command.
    """
    command = [sys.executable, "-m", "localdpo", *sys.argv[1:], "--plain", "--run", series.name]
    # The process does the same. One that is killed before must not leave a series without its limits.
    with RunLock(series):
        write_options(series, options)
    job = Job(command, series.log, "the series", f"resume it: {resume_command(series)}")
    code = open_dashboard(series.path.parent, None, series=series, maker=job)
    if (problem := job.problem()) is not None:
        say(f"error: {problem}", error=True)
        return 1
    if job.is_running:
        say(f"it continues; return to it with: {command_line('watch', *run_words(series))}")
    else:
        show()
    return code
