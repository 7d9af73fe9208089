"""`localdpo train`: create or find the run, start its worker, show it in the dashboard or as lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localdpo.cli import options as opt
from localdpo.cli.plain import Interrupts, ProgressView
from localdpo.cli.watch import open_dashboard, say_continues
from localdpo.core.errors import DEVICE_EXIT, USER_ERROR_EXIT, UserError
from localdpo.core.names import command_line
from localdpo.core.process import launched_rank
from localdpo.core.text import printable
from localdpo.launch.explain import CRASHED_EXIT, FINISHED_EXIT, exit_code, explain_death
from localdpo.launch.processes import Worker, start_worker, watch
from localdpo.out import has_screen, note, print_json, say
from localdpo.records.checkpoints import adapter_folder, newest_checkpoint, read_log, restart_note
from localdpo.records.deaths import RESUME_WITH
from localdpo.records.events import effective, read_events
from localdpo.records.progress import progress_of
from localdpo.records.rundir import RunDir, runs_dir_of
from localdpo.records.runs import summarise
from localdpo.records.wording import closing_lines

if TYPE_CHECKING:
    from localdpo.launch.begin import TrainRequest


def train(
    recipe: opt.RecipeArgument = None,
    overrides: opt.OverridesArgument = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the run. Default: the recipe's, numbered if taken. An existing one is resumed.",
            autocompletion=opt.run_names,
        ),
    ] = None,
    runs_dir: opt.RunsDirOption = Path("runs"),
    plain: opt.PlainOption = False,
    resume: opt.ResumeOption = False,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Resume although data, model or adapter changed since."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show recipe, data, steps and memory without training.")
    ] = False,
    notify: opt.NotifyOption = False,
    as_json: opt.JsonOption = False,
) -> None:
    """Train as a recipe says, with DPO or another loss."""
    request = make_request(recipe, overrides, run, runs_dir, resume, accept_changes)
    if dry_run:
        if as_json:
            raise UserError("--dry-run prints a text: leave out --json")
        from localdpo.launch.begin import known_run, resolve_recipe
        from localdpo.out.console import Console
        from localdpo.train.dry_run import dry_run as show

        resolved = resolve_recipe(request, known_run(request), note)
        show(resolved, Console(soft_wrap=not sys.stdout.isatty()))
        return
    rank = launched_rank()
    if rank:
        from localdpo.train.follow import follow

        file = request.recipe if isinstance(request.recipe, Path) else None
        raise typer.Exit(follow(file, request.overrides))
    from localdpo.launch.begin import open_run

    found = open_run(request, note)
    if found.status() == "finished":
        if rank is not None:
            raise UserError(f"{found.path} is finished: the other ranks have nothing to do")
        say_finished(found, as_json)
        return
    if (again := restart_note(found)) is not None:
        note(again)
    try:
        if plain or as_json or not has_screen():
            code = train_and_watch(found, accept_changes, as_json, notify)
        else:
            code = train_in_dashboard(found, accept_changes, notify)
    except UserError:
        found.discard()
        raise
    raise typer.Exit(code)


def make_request(
    recipe: str | None,
    overrides: Sequence[str] | None,
    run: str | None,
    runs_dir: Path,
    resume: bool,
    accept_changes: bool = False,
    kind: type[RunDir] = RunDir,
) -> TrainRequest:
    """The request of the command line. Raises UserError for arguments that do not go together."""
    from localdpo.launch.begin import TrainRequest

    words = tuple(overrides or ())
    # A file may have "=" in its name; an override is never a file.
    if recipe is not None and "=" in recipe and not Path(recipe).is_file():
        words, recipe = (recipe, *words), None
    for override in words:
        if "=" not in override:
            raise UserError(f"{override}: expected KEY=VALUE after the recipe, such as loss.beta=0.2")
    if recipe is None and not (resume and run is not None):
        raise UserError(
            f"no recipe: give a YAML file (`{command_line('init')}` lists some), or --resume with --run NAME"
        )
    path = None if recipe is None else Path(recipe)
    return TrainRequest(path, words, run, runs_dir, resume, accept_changes, kind)


def say_finished(run: RunDir, as_json: bool) -> None:
    """Print that nothing is left to do, and where the result is."""
    head = f"{run.path} is finished; for another run of the recipe give another name with --run"
    for line in (head, *closing_lines(run, read_events(run.events))[1:]):
        say(printable(line), error=as_json)
    if as_json:
        print_json(trained_record(run))


def train_and_watch(
    run: RunDir, accept_changes: bool, as_json: bool, notify: bool = False, *, is_part: bool = False
) -> int:
    """Start the worker, show its events, explain its end; the exit code of the command.

    `is_part`: the run is a part of what the command does, so that it is named before what is said of it, and
    neither its record is printed nor how to resume it alone.
    """
    from localdpo.out.console import Console

    console = Console(stderr=as_json)
    before = progress_of(effective(read_log(run, note, alive=False)))
    with Interrupts() as interrupts:
        worker = start_worker(run, accept_changes=accept_changes)
        interrupts.pass_to(worker)
        with ProgressView(console, before, run.name if notify else None) as view:
            view.say(f"run {run.path} (worker {worker.pid}, log {run.worker_log})")
            for event in watch(worker, on_poll=lambda: interrupts.report(view.say)):
                view.show(event)
    worker.wait()
    return report_end(worker, interrupts.by_keyboard, as_json, is_part=is_part)


def train_in_dashboard(run: RunDir, accept_changes: bool, notify: bool = False) -> int:
    """Start the worker and show it in the dashboard until the user leaves; the exit code of the command.

    Training that has not ended by then continues: that is no error.
    """
    with Interrupts() as interrupts:
        worker = start_worker(run, accept_changes=accept_changes)
        interrupts.pass_to(worker)
        # Textual takes a moment to load while the worker starts.
        import localdpo.dashboard.app  # noqa: F401
    code = open_dashboard(runs_dir_of(run), run, worker, notify=notify)
    if worker.returncode is not None:
        return report_end(worker, by_keyboard=False)
    say_continues(run, worker.pid)
    return code


def report_end(worker: Worker, by_keyboard: bool, as_json: bool = False, *, is_part: bool = False) -> int:
    """Print how the run of an ended worker ended, and what to do next; the exit code of the command."""
    run, returncode = worker.run, worker.returncode
    assert returncode is not None
    code = exit_code(returncode, run, worker.log_start, by_keyboard=by_keyboard)
    if code == FINISHED_EXIT and not is_part:
        for line in closing_lines(run, read_events(run.events)):
            say(printable(line), error=as_json)
    lines = explain_death(returncode, run, worker.log_start)
    if is_part:
        lines = [f"{run.name}: {line}" for line in lines if not line.startswith(RESUME_WITH)]
    for number, line in enumerate(lines):
        is_error = code == USER_ERROR_EXIT or (code in (CRASHED_EXIT, DEVICE_EXIT) and number == 0)
        note(f"error: {line}" if is_error else line)
    # A mistake that was found before training began leaves no run behind.
    if not (code == USER_ERROR_EXIT and run.discard()) and as_json and not is_part:
        print_json(trained_record(run))
    return code


def trained_record(run: RunDir) -> dict[str, Any]:
    """The run as `localdpo runs --json` lists it, and its folder and adapter."""
    summary = summarise(run, read_events(run.events), run.is_running())
    adapter = None if newest_checkpoint(run) is None else str(adapter_folder(run))
    return {**summary.to_json(), "path": str(run.path), "adapter": adapter}
