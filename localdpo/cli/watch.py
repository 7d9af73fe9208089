"""`localdpo watch`: the dashboard of a run that is training or has ended."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import typer

from localdpo.cli.options import NotifyOption, RunsDirOption, run_names
from localdpo.cli.plain import ProgressView
from localdpo.core.errors import UserError
from localdpo.core.names import command_line
from localdpo.core.text import printable
from localdpo.launch.explain import ended_lines, exit_code
from localdpo.launch.processes import Job, Worker, code_in_log
from localdpo.launch.processes import watch as events_of
from localdpo.out import has_screen, note, say
from localdpo.records.catalog import find_series, list_series
from localdpo.records.checkpoints import read_log
from localdpo.records.progress import Progress
from localdpo.records.rundir import RunDir, find_run, list_runs
from localdpo.records.series import SeriesDir
from localdpo.records.wording import run_words

# As keymap.SCREEN_TITLES has them; naming them here keeps Textual out of --help.
SCREENS: Final = ("live", "samples", "pairs", "compare", "judge", "runs")
DEFAULT_SIZE: Final = "120x36"
_SIZE: Final = re.compile(r"([1-9][0-9]{0,3})x([1-9][0-9]{0,3})")


def watch(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            help="Name of the run, of rounds or of a sweep. Default: the running one, or the latest.",
            autocompletion=run_names,
        ),
    ] = None,
    runs_dir: RunsDirOption = Path("runs"),
    screen: Annotated[
        str | None, typer.Option(metavar="SCREEN", help=f"Screen to open: {', '.join(SCREENS)}.")
    ] = None,
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame as text and exit; needs no terminal.")
    ] = False,
    plain: Annotated[
        bool, typer.Option("--plain", help="Print lines instead until the run ends; needs no terminal.")
    ] = False,
    notify: NotifyOption = False,
    size: Annotated[
        str | None,
        typer.Option(metavar="COLSxROWS", help=f"Size of the frame of --once. Default: {DEFAULT_SIZE}."),
    ] = None,
) -> None:
    """Open the dashboard of a run that is training or has ended. Leaving it does not stop training."""
    if plain and (once or screen is not None):
        raise UserError("--plain prints lines, not a screen: leave out --once and --screen")
    if size is not None and not once:
        raise UserError("--size works only with --once; otherwise the frame has the size of the terminal")
    if not once and not plain and not has_screen():
        raise UserError(
            "watch needs a terminal; --once prints one frame as text, --plain lines until the end"
        )
    if run is None:
        found = active_run(runs_dir, single=plain or screen is not None)
    else:
        found = find_series(runs_dir, run) or find_run(runs_dir, run)
    if isinstance(found, SeriesDir):
        if plain or screen is not None:
            option = "--plain" if plain else "--screen"
            raise UserError(
                f"{found.path}: {option} is for a single run; name one of its runs, or use --once"
            )
        if once:
            print_frame(runs_dir, None, "runs", size or DEFAULT_SIZE, found)
            return
        raise typer.Exit(open_dashboard(runs_dir, None, series=found, notify=notify))
    if plain:
        raise typer.Exit(follow(found, notify))
    jump = screen or ("live" if run is not None or found.is_running() else "runs")
    if jump not in SCREENS:
        raise UserError(f"--screen {jump}: expected one of {', '.join(SCREENS)}")
    if once:
        print_frame(runs_dir, found, jump, size or DEFAULT_SIZE)
        return
    raise typer.Exit(open_dashboard(runs_dir, found, jump=jump, notify=notify))


def follow(run: RunDir, notify: bool) -> int:
    """Show a run from its beginning to its end, as `train --plain` does; the exit code of `train`.

    Ctrl-C leaves, and training continues.
    """
    from localdpo.out.console import Console

    try:
        with ProgressView(Console(), Progress(), run.name if notify else None) as view:
            for event in events_of(run):
                view.show(event)
    except KeyboardInterrupt:
        if run.is_running():
            say_continues(run, run.pid())
        raise
    log = read_log(run, note, alive=False)
    code = exit_code(code_in_log(log), run)
    for line in ended_lines(run, log):
        say(printable(line), error=code != 0)
    return code


def active_run(runs_dir: Path, *, single: bool = False) -> RunDir:
    """The run or series that is being made, else the most recently active run, or series without any.

    `single`: no series. Raises UserError if there is none.
    """
    runs, series = list_runs(runs_dir), [] if single else list_series(runs_dir)
    running = (each for each in (*series, *runs) if each.is_running())
    return next(running, None) or next(iter((*runs, *series)), None) or find_run(runs_dir)


def print_frame(
    runs_dir: Path, run: RunDir | None, jump: str, size: str, series: SeriesDir | None = None
) -> None:
    """Print one frame of the screen `jump` at COLSxROWS, as text. Raises UserError for an invalid size."""
    match = _SIZE.fullmatch(size)
    if match is None:
        raise UserError(f"--size {size}: expected columns and rows, such as {DEFAULT_SIZE}")
    from localdpo.dashboard.app import DashboardApp, render_once

    app = DashboardApp(runs_dir, run, jump=jump, series=series)
    frame = render_once(app, (int(match[1]), int(match[2])))
    if app.return_code:
        raise typer.Exit(app.return_code)
    if app.feed is not None and app.feed.state.damage is not None:
        say(app.feed.state.damage, error=True)
    say(frame.removesuffix("\n"))


def open_dashboard(
    runs_dir: Path,
    run: RunDir | None,
    worker: Worker | None = None,
    jump: str = "live",
    *,
    series: SeriesDir | None = None,
    maker: Job | None = None,
    notify: bool = False,
) -> int:
    """Show the dashboard until the user leaves; its exit code. Names the run if that is still training then.

    `worker`: the worker that the command started itself, on which it reports itself. `series`: shown in place
    of a run; `maker`: the process that was started to make it.
    """
    from localdpo.dashboard.app import DashboardApp
    from localdpo.dashboard.appbase import run_app

    app = DashboardApp(runs_dir, run, worker, jump, notifies=notify, series=series, maker=maker)
    run_app(app)
    left = None if app.feed is None or series is not None else app.feed.run
    is_own = worker is not None and left is not None and left.path == worker.run.path
    if left is not None and left.is_running() and not is_own:
        say_continues(left, left.pid())
    return app.return_code or 0


def say_continues(run: RunDir, pid: int | None) -> None:
    """Print that training continues, and how to return to its dashboard."""
    words = command_line("watch", *run_words(run))
    who = f" (process {pid})" if pid is not None else ""
    say(f"training continues{who}; return to the dashboard with: {words}")
