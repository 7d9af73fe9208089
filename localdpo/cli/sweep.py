"""`localdpo sweep`: one run for each combination of values, compared at equal KL."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localdpo.cli import options as opt
from localdpo.cli.judging import carry_out, with_judge_options
from localdpo.cli.plain import Interrupts, ProgressView, bars_on, print_plain, print_table
from localdpo.cli.rounds import make_beside_dashboard
from localdpo.cli.train import make_request, report_end
from localdpo.core.errors import USER_ERROR_EXIT, UserError
from localdpo.core.names import command_line
from localdpo.launch.explain import CRASHED_EXIT, INTERRUPTED_EXIT, STOPPED_EXIT
from localdpo.launch.processes import Worker
from localdpo.out import has_screen, note, print_json, result, say
from localdpo.records import sweeps
from localdpo.records.checkpoints import read_log
from localdpo.records.events import Event, effective
from localdpo.records.metrics import ACCURACY
from localdpo.records.progress import progress_of
from localdpo.records.rundir import RunDir, find_folder
from localdpo.records.series import SeriesOptions
from localdpo.records.wording import run_words

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

    from localdpo.launch.sweep import Judging
    from localdpo.out.console import Console


@with_judge_options
def sweep(
    *,
    recipe: opt.RecipeArgument = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=V1,V2",
            help="Options with their values, such as loss.beta=0.05,0.1; a single value is that of all runs.",
        ),
    ] = None,
    jobs: Annotated[int | None, typer.Option(metavar="N", min=1, help="Runs at once. Default: 1.")] = None,
    run: opt.SeriesOption = None,
    runs_dir: opt.RunsDirOption = Path("runs"),
    resume: opt.ResumeOption = False,
    show: Annotated[
        bool, typer.Option("--show", help="Only print the table of --run or of the latest; takes no RECIPE.")
    ] = False,
    best_by: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC", help=f"What the best run is chosen by. Default: {ACCURACY}, else loss."
        ),
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help=f"Then evaluate every run, too, as `eval` does: {opt.SPEC_HELP}. Default: no evaluation.",
        ),
    ] = None,
    judging: dict[str, Any],
    prompts: opt.PromptsOption = None,
    limit: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="At most this many of them. Default: 200.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Longest answer in tokens. Default: 256.")
    ] = None,
    forget_options: opt.ForgetOption = False,
    plain: opt.PlainOption = False,
    as_json: opt.JsonOption = False,
    dry_run: opt.DryRunOption = False,
) -> None:
    """Train with each of several values of options, and compare.

    The runs are compared at equal KL. A sweep is resumed with the options that it was begun with, but for
    those that are given.
    """
    sweeps.require_ranked(best_by)
    own = {"judge": judge, "prompts": prompts, "limit": limit, "max_tokens": max_tokens}
    said = judging | {name: value for name, value in own.items() if value is not None}
    if show:
        if recipe or said or jobs or resume or dry_run or forget_options:
            raise UserError("--show prints a sweep that is there: name it with --run, and leave out the rest")
        print_sweep(find_folder(runs_dir, run, sweeps.SweepDir), best_by, as_json)
        return
    from localdpo.launch.begin import known_run
    from localdpo.launch.rounds import kept_options
    from localdpo.launch.sweep import judging_in, open_sweep, plan_sweep, preview_lines, require_judge

    request = make_request(recipe, overrides, run, runs_dir, resume, kind=sweeps.SweepDir)
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


def print_sweep(sweep: sweeps.SweepDir, best_by: str | None, as_json: bool) -> None:
    """Print the table of the runs, the best of them and what is left to do."""
    from localdpo.out.console import Console

    results = sweeps.results_of(sweep, best_by)
    if as_json:
        print_json({"name": sweep.name, "path": str(sweep.path), **results.to_json()})
        return
    console = Console()
    headings, rows = sweeps.table_of(results)
    print_table(console, headings, rows, right=headings[2:-1])
    for line in sweeps.closing_lines(sweep, results):
        print_plain(console, line)
    if results.best is not None:
        words = run_words(RunDir(sweep.path / results.best))
        print_plain(console, f"export it: {command_line('export', *words)}")


def make(
    sweep: sweeps.SweepDir,
    plan: sweeps.SweepPlan,
    options: SeriesOptions,
    judging: Judging | None,
    as_json: bool,
) -> int:
    """Train what is left, then evaluate if a judge is named; the exit code of the command."""
    from localdpo.judging.cost import Budget
    from localdpo.launch.sweep import SweepHands, evaluate_sweep, train_sweep
    from localdpo.out.console import Console

    console = Console(stderr=as_json)
    with Interrupts() as interrupts, bars_on(console) as bars:
        shown = ShownRuns(console, bars, interrupts)
        hands = SweepHands(shown.begun, shown.refused, shown.event, shown.ended, shown.goes_on)
        train_sweep(sweep, plan, options, hands)
    if interrupts.came:
        return INTERRUPTED_EXIT if interrupts.by_keyboard else STOPPED_EXIT
    if judging is not None:
        budget = Budget(judging.request.get("max_usd"))
        evaluate_sweep(sweep, plan, judging, partial(carry_out, budget=budget))
    return shown.code


class ShownRuns:
    """Shows the runs of a sweep while they train, and passes Ctrl-C on to them (launch.sweep.SweepHands).

    Attributes:
        code: the exit code of the first run that did not finish, else 0.
    """

    def __init__(self, console: Console, bars: Bars, interrupts: Interrupts) -> None:
        self._console, self._bars, self._interrupts = console, bars, interrupts
        self._views: dict[str, ProgressView] = {}
        self.code = 0

    def begun(self, run: RunDir, worker: Worker | None) -> None:
        if worker is not None:
            self._interrupts.pass_to(worker)
        before = progress_of(effective(read_log(run, note, alive=worker is None)))
        view = ProgressView(self._console, before, name=run.name, bars=self._bars)
        self._views[run.name] = view.__enter__()
        view.say(f"run {run.path}" + (", which is being trained already" if worker is None else ""))

    def event(self, run: RunDir, event: Event) -> None:
        self._views[run.name].show(event)

    def ended(self, run: RunDir, worker: Worker | None) -> None:
        self._views.pop(run.name).__exit__()
        if worker is not None:
            code = report_end(worker, self._interrupts.by_keyboard, is_part=True)
        else:
            code = 0 if run.status() == "finished" else CRASHED_EXIT
        self.code = self.code or code

    def refused(self, run: RunDir, error: UserError) -> None:
        say(f"error: {run.name}: {error}", error=True)
        self.code = self.code or USER_ERROR_EXIT

    def goes_on(self) -> bool:
        self._interrupts.report(note)
        return not self._interrupts.came
