"""`localdpo train`: create or find the run, start its worker, show it in the dashboard or as lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from localdpo.cli.options import RunsDirOption
from localdpo.core.atomic import LEAST_BYTES, require_space
from localdpo.core.errors import DEVICE_EXIT, USER_ERROR_EXIT, UserError
from localdpo.dashboard.recipediff import differing, options_of
from localdpo.records.rundir import RunDir, already_running, check_name, find_run, runs_of, spelled

if TYPE_CHECKING:
    from localdpo.launch.processes import Worker
    from localdpo.recipe.schema import Recipe

CRASHED_EXIT = 1
INTERRUPTED_EXIT = 130


@dataclass(frozen=True)
class Request:
    """The arguments of the command, before anything is read."""

    recipe: Path | None
    overrides: tuple[str, ...]
    run: str | None
    runs_dir: Path
    resume: bool
    accept_changes: bool = False


def train(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE", help="A YAML file. Not needed with --resume --run NAME."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE", help="Options that override the recipe's, such as loss.beta=0.2."
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name of the run. Default: the recipe's name and a number. An existing run is resumed.",
        ),
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Show a bar on a terminal, text lines elsewhere, and no dashboard."),
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Resume the run --run, or the latest run of the recipe.")
    ] = False,
    accept_changes: Annotated[
        bool,
        typer.Option("--accept-changes", help="Resume although data, model or adapter changed since."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show recipe, data, steps and memory without training.")
    ] = False,
) -> None:
    """Train with a recipe: SFT, DPO, KTO or another preference loss, as its loss says."""
    arguments = [*([] if recipe is None else [recipe]), *(overrides or [])]
    request = make_request(arguments, run, runs_dir, resume, accept_changes)
    if dry_run:
        show_dry_run(request)
        return
    found = open_run(request)
    if found.status() == "finished":
        say_finished(found)
        return
    show = train_and_watch if plain or not has_terminal() else train_in_dashboard
    try:
        code = show(found, accept_changes)
    except UserError:
        found.discard()
        raise
    raise typer.Exit(code)


def make_request(
    arguments: Sequence[str], run: str | None, runs_dir: Path, resume: bool, accept_changes: bool = False
) -> Request:
    """The request of the command line. Raises UserError for arguments that do not go together."""
    if run is not None:
        check_name(run)
    first = arguments[0] if arguments else None
    # A file may have "=" in its name; an override is never a file.
    is_recipe = first is not None and ("=" not in first or Path(first).is_file())
    recipe = Path(first) if first is not None and is_recipe else None
    overrides = tuple(arguments[1:] if is_recipe else arguments)
    for override in overrides:
        if "=" not in override:
            raise UserError(f"{override}: expected KEY=VALUE after the recipe, such as loss.beta=0.2")
    if recipe is None and not (resume and run is not None):
        raise UserError("no recipe: give a YAML file, such as recipes/dpo.yaml, or --resume with --run NAME")
    return Request(recipe, overrides, run, runs_dir, resume, accept_changes)


def open_run(request: Request) -> RunDir:
    """The run to train, created if it is new. Raises UserError(s) for everything that prevents it."""
    from localdpo.recipe.load import dump_recipe

    known = known_run(request)
    if known is not None and known.is_running():
        raise already_running(known)
    if known is None and request.accept_changes:
        raise UserError("--accept-changes resumes a run: give its name with --run, or --resume")
    require_space(request.runs_dir, LEAST_BYTES)
    text = dump_recipe(resolve_recipe(request, known))
    name = known.name if known is not None else request.run
    if name is None:
        stem = request.recipe.stem if request.recipe is not None else "run"
        return RunDir.create_new(request.runs_dir, stem, text)
    return RunDir.create(request.runs_dir, name, text, differing_keys)


def known_run(request: Request) -> RunDir | None:
    """The run that the request resumes, None for a new one."""
    if request.run is not None:
        run = RunDir(spelled(request.runs_dir / request.run))
        if request.resume and not run.exists():
            return find_run(request.runs_dir, request.run)
        return run if run.exists() else None
    if not request.resume or request.recipe is None:
        return None
    runs = runs_of(request.runs_dir, request.recipe.stem)
    if not runs:
        raise UserError(
            f"{request.runs_dir}: no run of {request.recipe} to resume; remove --resume to start one"
        )
    return runs[0]


def resolve_recipe(request: Request, known: RunDir | None) -> Recipe:
    """The recipe of the request; without one, that of the run itself. Its links are followed."""
    from localdpo.out import say
    from localdpo.recipe.load import follow_links, load_recipe

    path = request.recipe
    if path is None:
        if known is None:
            raise UserError(f"{request.runs_dir}: no run named {request.run!r}")
        path = known.recipe
    earlier = None if known is None else load_recipe(known.recipe)
    recipe, lines = follow_links(load_recipe(path, list(request.overrides)), earlier)
    for line in lines:
        say(line, error=True)
    return recipe


def differing_keys(old_text: str, new_text: str) -> str:
    """`loss.beta: 0.1 there, 0.2 here; ...`: the first keys in which two resolved recipes differ."""
    rows = differing([options_of(old_text) or {}, options_of(new_text) or {}])
    differences = [
        f"{key}: {old or 'not set'} there, {new or 'not set'} here" for key, (old, new) in rows[:3]
    ]
    more = f"; and {len(rows) - 3} more" if len(rows) > 3 else ""
    return ("; ".join(differences) or "written by another version of localdpo") + more


def show_dry_run(request: Request) -> None:
    from localdpo.out.console import Console
    from localdpo.train.dry_run import dry_run

    dry_run(resolve_recipe(request, known_run(request)), Console(soft_wrap=not sys.stdout.isatty()))


def say_finished(run: RunDir) -> None:
    """Print that nothing is left to do, and where the result is."""
    from localdpo.cli.plain import print_plain
    from localdpo.out.console import Console
    from localdpo.records.events import read_events
    from localdpo.records.wording import closing_lines

    console = Console()
    print_plain(
        console, f"{run.path} is finished; for another run of the recipe give another name with --run"
    )
    for line in closing_lines(run, read_events(run.events))[1:]:
        print_plain(console, line)


def train_and_watch(run: RunDir, accept_changes: bool) -> int:
    """Start the worker, show its events, explain its end; the exit code of the command."""
    from localdpo.cli.plain import Interrupts, ProgressView
    from localdpo.launch.processes import start_worker, watch
    from localdpo.out import say
    from localdpo.out.console import Console
    from localdpo.records.checkpoints import read_log
    from localdpo.records.events import effective
    from localdpo.records.progress import progress_of

    console = Console()
    before = progress_of(effective(read_log(run, lambda line: say(line, error=True), alive=False)))
    with Interrupts() as interrupts:
        worker = start_worker(run, accept_changes=accept_changes)
        interrupts.pass_to(worker)
        with ProgressView(console, before) as view:
            view.say(f"run {run.path} (worker {worker.pid}, log {run.worker_log})")
            for event in watch(worker, on_poll=lambda: interrupts.report(view.say)):
                view.show(event)
    worker.wait()
    return report_end(worker, interrupts.by_keyboard)


def has_terminal() -> bool:
    """Whether stdin and stdout are a terminal, so that a dashboard can be used."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def train_in_dashboard(run: RunDir, accept_changes: bool) -> int:
    """Start the worker and show it in the dashboard until the user leaves; the exit code of the command.

    Training that has not ended by then continues: that is no error.
    """
    from localdpo.cli.plain import Interrupts
    from localdpo.cli.watch import open_dashboard, say_continues
    from localdpo.launch.processes import start_worker

    with Interrupts() as interrupts:
        worker = start_worker(run, accept_changes=accept_changes)
        interrupts.pass_to(worker)
        # Textual takes a moment to load while the worker starts.
        import localdpo.dashboard.app  # noqa: F401
    code = open_dashboard(run.path.parent, run, worker)
    if worker.returncode is not None:
        return report_end(worker, by_keyboard=False)
    say_continues(run, worker.pid)
    return code


def report_end(worker: Worker, by_keyboard: bool) -> int:
    """Print how the run of an ended worker ended, and what to do next; the exit code of the command."""
    from localdpo.cli.plain import print_plain
    from localdpo.launch.explain import FINISHED_EXIT, explain_death, full_disk, is_device_failure
    from localdpo.out.console import Console
    from localdpo.records.events import read_events
    from localdpo.records.wording import closing_lines

    run, returncode = worker.run, worker.returncode
    assert returncode is not None
    if returncode == FINISHED_EXIT:
        for line in closing_lines(run, read_events(run.events)):
            print_plain(Console(), line)
        return 0
    code = exit_code(returncode, by_keyboard)
    if code == CRASHED_EXIT and full_disk(run) is not None:
        code = USER_ERROR_EXIT
    if code == CRASHED_EXIT and is_device_failure(returncode, run, worker.log_start):
        code = DEVICE_EXIT
    for number, line in enumerate(explain_death(returncode, run, worker.log_start)):
        is_error = code == USER_ERROR_EXIT or (code in (CRASHED_EXIT, DEVICE_EXIT) and number == 0)
        print_plain(Console(stderr=True), f"error: {line}" if is_error else line)
    if code == USER_ERROR_EXIT:
        # A mistake that was found before training began leaves no run behind.
        run.discard()
    return code


def exit_code(returncode: int, by_keyboard: bool) -> int:
    """The command's exit code for a worker that did not finish."""
    from localdpo.launch.explain import STOPPED_AT_ONCE, STOPPED_EXIT

    if returncode == STOPPED_EXIT or returncode in STOPPED_AT_ONCE:
        return INTERRUPTED_EXIT if by_keyboard else STOPPED_EXIT
    return USER_ERROR_EXIT if returncode == USER_ERROR_EXIT else CRASHED_EXIT
