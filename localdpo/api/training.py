"""`localdpo.train`: a run in a worker process of its own, or in this one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from localdpo.api.runs import Run
from localdpo.core.errors import (
    DEVICE_EXIT,
    USER_ERROR_EXIT,
    LocalDPOError,
    TrainingFailed,
    UserError,
    UserErrors,
)
from localdpo.launch.begin import TrainRequest, known_run, open_run, resolve_recipe
from localdpo.launch.explain import CRASHED_EXIT, FINISHED_EXIT, STOPPED_EXIT, exit_code, explain_death
from localdpo.launch.processes import Worker, start_worker, watch
from localdpo.launch.reporting import Reporters
from localdpo.out import note
from localdpo.recipe.arguments import Amount, Count, checked
from localdpo.recipe.schema import Recipe
from localdpo.records.events import Event
from localdpo.records.rundir import RunDir
from localdpo.records.series import RoundsDir, SeriesOptions, SeriesRecord
from localdpo.records.sweeps import SweepDir, SweepResults, require_ranked, results_of

if TYPE_CHECKING:
    from localdpo.train.control import StopRequest

OnEvent = Callable[[Event], object]


@checked
def train(
    recipe: Recipe | str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    runs_dir: str | os.PathLike[str] = "runs",
    resume: bool = False,
    accept_changes: bool = False,
    on_event: OnEvent | None = None,
    in_process: bool = False,
    wait: bool = True,
) -> Run:
    """Train a recipe, as `localdpo train` does; the run, when it has finished or was stopped.

    Ctrl-C (in a notebook: interrupting the cell) saves and stops; a second one stops at once.

    Args:
        recipe: what `load_recipe` gave, or the path of a file; None with `resume` and `name`.
        overrides: `KEY=VALUE` on top of a file, such as `loss.beta=0.2`.
        name: of the run; None: the file's name, with a number if taken. An existing run is resumed.
        resume: the run `name`, or the latest run of the file.
        accept_changes: resume although data, model or adapter changed since.
        on_event: called with every event as it comes, here in this process. If it raises, a worker trains on.
        in_process: train in this process, with its memory and device, rather than in a worker process, which
            a crash of the GPU driver ends alone.
        wait: False returns as soon as the worker has started; `Run.watch` follows it.

    Raises:
        UserError, UserErrors: what must be corrected before the run can begin.
        TrainingFailed: the worker crashed, or its device or memory gave up.
    """
    if in_process and not wait:
        raise UserError("in_process: training in this process is waited for; leave out wait=False")
    if not wait and on_event is not None:
        raise UserError("on_event: nobody calls it with wait=False; read the events of Run.watch()")
    if recipe is None and name is None:
        raise UserError("recipe: expected a recipe or the path of one, or the name of a run to resume")
    if isinstance(recipe, Recipe) and overrides:
        raise UserError("overrides: they go on top of a file; give them to load_recipe")
    if recipe is not None and not isinstance(recipe, Recipe):
        recipe = Path(recipe)
    request = TrainRequest(recipe, tuple(overrides), name, Path(runs_dir), resume, accept_changes)
    run = open_run(request, note)
    if run.status() == "finished":
        note(f"{run.path} is finished; for another run of the recipe give another name")
        return Run(run.path)
    try:
        if in_process:
            _train_here(run, accept_changes, on_event)
            return Run(run.path)
        worker = start_worker(run, accept_changes=accept_changes)
    except LocalDPOError:
        run.discard()
        raise
    if wait:
        returncode = _follow(worker, on_event)
        code = exit_code(returncode, run, worker.log_start)
        lines = explain_death(returncode, run, worker.log_start)
        if code == USER_ERROR_EXIT:
            run.discard()
            raise UserErrors([UserError(line) for line in lines])
        if code in (CRASHED_EXIT, DEVICE_EXIT):
            raise TrainingFailed(lines)
    else:
        # Takes the worker's exit code when it has ended, so that no dead process stays.
        threading.Thread(target=worker.wait, daemon=True).start()
    return Run(run.path)


@checked
def rounds(
    recipe: Recipe | str | os.PathLike[str] | None = None,
    overrides: Sequence[str] = (),
    *,
    rounds: Count | None = None,
    name: str | None = None,
    runs_dir: str | os.PathLike[str] = "runs",
    resume: bool = False,
    max_usd: Amount | None = None,
    forget_options: bool = False,
) -> SeriesRecord:
    """Rounds of training on the policy's own answers, as `localdpo rounds`; what came of them.

    Args:
        rounds: at most so many; None: as many as the series was made for, 3 for a new one.
        name: of the series; an existing one is resumed.
        max_usd: the most that may be spent on the judge by this call; None: what the series was made with, no
            limit for a new one.
        forget_options: go on without the options of the judge that the series was made with.

    The other arguments, and what is raised, are those of `train`; a training that was stopped ends the call.
    """
    from localdpo.judging.cost import Budget
    from localdpo.launch.rounds import Hands, kept_options, plan_rounds, run_rounds, wanted_rounds

    if recipe is not None and not isinstance(recipe, Recipe):
        recipe = Path(recipe)
    request = TrainRequest(recipe, tuple(overrides), name, Path(runs_dir), resume, kind=RoundsDir)
    known = known_run(request)
    said = SeriesOptions({} if max_usd is None else {"max_usd": max_usd})
    options, wanted = said.above(kept_options(known, forget=forget_options)), wanted_rounds(known, rounds)
    plan = plan_rounds(resolve_recipe(request, known, note), options)
    series, budget = open_run(request, note), Budget(plan.max_usd)
    assert isinstance(series, RoundsDir)

    def train_round(run: RunDir) -> int:
        trained = train(name=run.name, runs_dir=series.path, resume=True)
        return FINISHED_EXIT if trained.state == "finished" else STOPPED_EXIT

    hands = Hands(lambda options, make, run: run(make(options), budget=budget), train_round, note)
    return run_rounds(series, plan, wanted, hands)[0]


@checked
def sweep(
    recipe: str | os.PathLike[str] | None = None,
    grid: Mapping[str, Sequence[object]] | None = None,
    overrides: Sequence[str] = (),
    *,
    jobs: Count | None = None,
    name: str | None = None,
    runs_dir: str | os.PathLike[str] = "runs",
    resume: bool = False,
    best_by: str | None = None,
    forget_options: bool = False,
) -> SweepResults:
    """Train a recipe with each combination of the values in `grid`, as `localdpo sweep`; the runs compared.

    A run that fails is there with its state and why, and the others go on. Ctrl-C saves and stops the runs
    that train; call it again with `resume` to go on.

    Args:
        recipe: the path of a file; None with `resume` and `name`.
        grid: values by option, such as `{"loss.beta": [0.05, 0.1]}`.
        overrides: `KEY=VALUE` for all runs.
        jobs: runs at once; None: as the sweep was made, 1 for a new one.
        best_by: what `SweepResults.best` is the best by; None: as the sweep was made, reward accuracy for a
            new one.
        forget_options: go on without the options that the sweep was made with, a judge among them.

    The other arguments are those of `train`. Raises UserErrors for what must be corrected before any run.
    """
    from localdpo.launch.rounds import kept_options
    from localdpo.launch.sweep import SweepHands, open_sweep, plan_sweep, train_sweep

    require_ranked(best_by)
    values = [f"{key}={','.join(map(_text_of, values))}" for key, values in (grid or {}).items()]
    path = None if recipe is None else Path(recipe)
    request = TrainRequest(path, (*values, *overrides), name, Path(runs_dir), resume, kind=SweepDir)
    kept = kept_options(known_run(request), forget=forget_options)
    options = SeriesOptions({}, jobs, best_by).above(kept)
    plan = plan_sweep(request, note)
    made, workers = open_sweep(request, plan, note), list[Worker]()

    def begun(run: RunDir, worker: Worker | None) -> None:
        if worker is not None:
            workers.append(worker)

    try:
        train_sweep(made, plan, options, SweepHands(begun, lambda run, why: note(f"{run.name}: {why}")))
    except KeyboardInterrupt:
        for worker in workers:
            worker.interrupt()
        for worker in workers:
            worker.wait()
        raise
    return results_of(made)


def _text_of(value: object) -> str:
    """A value as an override has it; text with a comma is one value, too."""
    return value if isinstance(value, str) and "," not in value else json.dumps(value)


def _follow(worker: Worker, on_event: OnEvent | None) -> int:
    """Wait for the worker's end and pass on its events; its exit code."""
    interrupts = 0
    while True:
        try:
            for event in watch(worker):
                if on_event is not None:
                    on_event(event)
            return worker.wait()
        except KeyboardInterrupt:
            interrupts += 1
            worker.interrupt(at_once=interrupts > 1)


def _train_here(run: RunDir, accept_changes: bool, on_event: OnEvent | None) -> None:
    from localdpo.train.control import StopRequest
    from localdpo.train.worker import train_run

    stop, reporters = StopRequest(), Reporters(run)

    def pass_on(event: Event) -> None:
        reporters.look()
        if on_event is not None:
            on_event(event)

    with _stopped_by_ctrl_c(stop):
        try:
            train_run(run, stop, accept=accept_changes, on_event=pass_on)
        finally:
            reporters.finish(threading.Event().wait)  # never set: Ctrl-C raises


@contextlib.contextmanager
def _stopped_by_ctrl_c(stop: StopRequest) -> Iterator[None]:
    """While this lasts, the first Ctrl-C asks to save and stop, and the second is as ever.

    Only the main thread gets signals, so elsewhere nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGINT)

    def ask(number: int, frame: FrameType | None) -> None:
        stop.reason = signal.Signals(number).name
        signal.signal(number, before)

    signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
