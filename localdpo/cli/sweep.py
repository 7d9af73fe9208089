"""`localdpo sweep`: one run for each combination of values, compared at equal KL."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localdpo.cli.judging import carry_out, with_judge_options
from localdpo.cli.options import (
    SPEC_HELP,
    DryRunOption,
    ForgetOption,
    JsonOption,
    PromptsOption,
    RunsDirOption,
)
from localdpo.cli.rounds import make_beside_dashboard
from localdpo.cli.train import make_request
from localdpo.core.errors import USER_ERROR_EXIT, UserError
from localdpo.core.names import command_line
from localdpo.out import has_screen, note, print_json, result, say
from localdpo.records.metrics import ACCURACY
from localdpo.records.rundir import RunDir, find_folder
from localdpo.records.series import SeriesOptions
from localdpo.records.sweeps import (
    SweepDir,
    SweepPlan,
    closing_lines,
    require_ranked,
    results_of,
    table_of,
)
from localdpo.records.wording import runs_dir_words

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from localdpo.cli.plain import Interrupts, ProgressView
    from localdpo.launch.processes import Worker
    from localdpo.launch.sweep import Judging
    from localdpo.out.console import Console
    from localdpo.records.events import Event


@with_judge_options
def sweep(
    *,
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="A YAML file. Not needed with --resume or --show."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=V1,V2",
            help="Options with their values, such as loss.beta=0.05,0.1; a single value is that of all runs.",
        ),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", metavar="N", min=1, help="Runs at once. Default: 1.")
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the sweep. Default: the recipe's name and a number. An existing one is resumed.",
        ),
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the sweep --run, or the latest one of the recipe.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Print the table of the sweep --run, or of the latest, and stop.")
    ] = False,
    best_by: Annotated[
        str | None,
        typer.Option(
            "--best-by", metavar="METRIC", help=f"What the best run is the best by. Default: {ACCURACY}."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            metavar="SPEC",
            help=f"Then evaluate every run, too, as `eval` does: {SPEC_HELP}. Default: no evaluation.",
        ),
    ] = None,
    judging: dict[str, Any],
    prompts: PromptsOption = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most this many of them. Default: 200.")
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", metavar="N", min=1, help="Longest answer in tokens. Default: 256."),
    ] = None,
    forget_options: ForgetOption = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Show bars on a terminal, lines elsewhere, and no dashboard.")
    ] = False,
    as_json: JsonOption = False,
    dry_run: DryRunOption = False,
) -> None:
    """Train a recipe with several values of some options, and compare the runs at equal KL.

    A sweep is resumed with the options that it was begun with, but for those that are given.
    """
    require_ranked(best_by)
    own = {"judge": judge, "prompts": prompts, "limit": limit, "max_tokens": max_tokens}
    said = judging | {name: value for name, value in own.items() if value is not None}
    if show:
        if recipe or said or jobs or resume or dry_run or forget_options:
            raise UserError("--show prints a sweep that is there: name it with --run, and leave out the rest")
        print_sweep(find_folder(runs_dir, run, SweepDir), best_by, as_json)
        return
    from dataclasses import replace

    from localdpo.launch.begin import known_run
    from localdpo.launch.rounds import kept_options
    from localdpo.launch.sweep import judging_in, open_sweep, plan_sweep, preview_lines, require_judge

    arguments = [*([] if recipe is None else [recipe]), *(overrides or [])]
    request = replace(make_request(arguments, run, runs_dir, resume), kind=SweepDir)
    known = known_run(request)
    options = SeriesOptions(said, jobs, best_by).above(kept_options(known, forget=forget_options))
    asked = judging_in(options)
    plan = plan_sweep(request, note)
    folder = runs_dir / (run or request.stem) if known is None else known.path
    if dry_run:
        lines = preview_lines(plan, folder, options.jobs or 1, asked, note)
        result({"preview": lines}, lines, as_json=as_json)
        return
    if asked is not None:
        require_judge(plan, folder, asked)
    made = open_sweep(request, plan, note)
    finish = partial(print_sweep, made, best_by, as_json)
    if plain or as_json or not has_screen():
        code = make(made, plan, options, asked, as_json)
        finish()
        raise typer.Exit(code)
    raise typer.Exit(make_beside_dashboard(made, options, finish))


def print_sweep(sweep: SweepDir, best_by: str | None, as_json: bool) -> None:
    """Print the table of the runs, the best of them and what is left to do."""
    from localdpo.cli.plain import print_plain, print_table
    from localdpo.out.console import Console

    results = results_of(sweep, best_by)
    if as_json:
        print_json({"name": sweep.name, "path": str(sweep.path), **results.to_json()})
        return
    console = Console()
    headings, rows = table_of(results)
    print_table(console, headings, rows, right=headings[2:-1])
    for line in closing_lines(sweep, results):
        print_plain(console, line)
    if results.best is not None:
        name = f"{sweep.name}/{results.best}"
        print_plain(console, f"export it: {command_line('export', name, *runs_dir_words(sweep))}")


def make(
    sweep: SweepDir, plan: SweepPlan, options: SeriesOptions, judging: Judging | None, as_json: bool
) -> int:
    """Train what is left, then evaluate if a judge is named; the exit code of the command."""
    from localdpo.cli.plain import Interrupts, bars_on
    from localdpo.judging.cost import Budget
    from localdpo.launch.explain import INTERRUPTED_EXIT, STOPPED_EXIT
    from localdpo.launch.sweep import evaluate_sweep, train_sweep
    from localdpo.out.console import Console

    console = Console(stderr=as_json)
    with Interrupts() as interrupts, bars_on(console) as bars:
        shown = ShownRuns(console, bars, interrupts)
        train_sweep(sweep, plan, options, shown)
    if interrupts.came:
        return INTERRUPTED_EXIT if interrupts.by_keyboard else STOPPED_EXIT
    if judging is not None:
        budget = Budget(judging.request.get("max_usd"))
        evaluate_sweep(sweep, plan, judging, partial(carry_out, budget=budget))
    return shown.code


class ShownRuns:
    """Shows the runs of a sweep while they are trained, and passes Ctrl-C on to them (launch.sweep.Hands).

    Attributes:
        code: the exit code of the first run that did not finish, else 0.
    """

    def __init__(self, console: Console, bars: Bars, interrupts: Interrupts) -> None:
        self._console, self._bars, self._interrupts = console, bars, interrupts
        self._views: dict[str, ProgressView] = {}
        self.code = 0

    def begun(self, run: RunDir, worker: Worker | None) -> None:
        """Pass signals on to its worker, and show how far it is."""
        from localdpo.cli.plain import ProgressView
        from localdpo.records.checkpoints import read_log
        from localdpo.records.events import effective
        from localdpo.records.progress import progress_of

        if worker is not None:
            self._interrupts.pass_to(worker)
        before = progress_of(effective(read_log(run, note, alive=worker is None)))
        view = ProgressView(self._console, before, name=run.name, bars=self._bars)
        self._views[run.name] = view.__enter__()
        view.say(f"run {run.path}" + (", which is being trained already" if worker is None else ""))

    def event(self, run: RunDir, event: Event) -> None:
        """Show an event."""
        self._views[run.name].show(event)

    def ended(self, run: RunDir, worker: Worker | None) -> None:
        """Say how it ended."""
        from localdpo.cli.train import report_end
        from localdpo.launch.explain import CRASHED_EXIT

        self._views.pop(run.name).__exit__()
        if worker is not None:
            code = report_end(worker, self._interrupts.by_keyboard, is_part=True)
        else:
            code = 0 if run.status() == "finished" else CRASHED_EXIT
        self.code = self.code or code

    def refused(self, run: RunDir, error: UserError) -> None:
        """Say why it cannot be started."""
        say(f"error: {run.name}: {error}", error=True)
        self.code = self.code or USER_ERROR_EXIT

    def goes_on(self) -> bool:
        """Say what a signal does; False after one."""
        self._interrupts.report(note)
        return not self._interrupts.came
