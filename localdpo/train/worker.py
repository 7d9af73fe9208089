"""The worker process of a run: `python -m localdpo.train RUN_DIR`.

It holds the run's lock, writes every event, and ends with an exit code: 0 finished, 2 a mistake that the
user can correct (one line on stderr), 3 stopped on request after saving, 4 a device or memory error that
Python could see; anything else is a crash. The traceback of both is in worker.log.
"""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localdpo.core.atomic import LEAST_BYTES, disk_refusals, require_space
from localdpo.core.errors import DEVICE_EXIT, USER_ERROR_EXIT, LocalDPOError, UserError
from localdpo.core.process import give_back_freed
from localdpo.model.arrays import named
from localdpo.model.backend import Backend, memory_limit, prepare
from localdpo.out import say, say_errors
from localdpo.records.checkpoints import restart_note
from localdpo.records.control import take
from localdpo.records.deaths import is_device_error
from localdpo.records.events import Event, EventWriter
from localdpo.records.rundir import RunDir, RunLock
from localdpo.trackers.registry import require_packages
from localdpo.train.control import StopRequest, answer_command

if TYPE_CHECKING:
    from localdpo.train.ranks import Ranks

STOPPED_EXIT = 3
ACCEPT_CHANGES = "--accept-changes"


def main(arguments: list[str]) -> int:
    """Train the run whose folder is the last of the arguments; the exit code."""
    accept = arguments[:1] == [ACCEPT_CHANGES]
    if len(arguments) != 1 + accept:
        say(f"usage: python -m localdpo.train [{ACCEPT_CHANGES}] RUN_DIR", error=True)
        return USER_ERROR_EXIT
    stop = StopRequest()
    stop.install()
    run = RunDir(Path(arguments[-1]))
    try:
        return train_run(run, stop, accept=accept)
    except LocalDPOError as error:
        with contextlib.suppress(OSError):  # worker.log may be on the full disk; the command says it then
            say_errors(error)
        return USER_ERROR_EXIT
    except BaseException as error:
        if not is_device_error(error):
            raise
        say(traceback.format_exc(), error=True)
        return DEVICE_EXIT


def train_run(
    run: RunDir, stop: StopRequest, *, accept: bool, on_event: Callable[[Event], object] | None = None
) -> int:
    """Train a run in this process: 0, or STOPPED_EXIT. `on_event` gets every event that is written.

    What ends it otherwise is raised when it is in the log.
    """
    if not run.exists():
        raise UserError(f"{run.path}: not the folder of a run: there is no {run.recipe.name} in it")
    with disk_refusals(), RunLock(run):
        run.clean()
        with EventWriter(run.events, on_event) as log:
            for left in take(run):
                answer_command(log, left, False, "this came before the worker began; give the command again")
            return _logged(run, log, stop, accept)


def _logged(run: RunDir, log: EventWriter, stop: StopRequest, accept: bool) -> int:
    """Train, and write how it ended."""
    try:
        with disk_refusals():
            backend = prepare()
            from localdpo.train.ranks import connect

            with connect() as ranks:
                return _train(ranks, backend, run, log, stop, accept)
    except LocalDPOError as error:
        with contextlib.suppress(UserError):  # a full disk must not hide what went wrong
            log.write("run.failed", error="; ".join(error.lines), lines=list(error.lines))
        raise
    except BaseException as error:
        with contextlib.suppress(UserError):
            log.write(
                "run.failed",
                error=f"{type(error).__name__}: {error}",
                detail="the traceback is in worker.log",
            )
        raise


def _train(
    ranks: Ranks, backend: Backend, run: RunDir, log: EventWriter, stop: StopRequest, accept: bool
) -> int:
    from localdpo.recipe.load import dump_recipe, load_recipe
    from localdpo.train import checkpoint, inputs
    from localdpo.train.assemble import assemble
    from localdpo.train.follow import require_same, versions
    from localdpo.train.loop import Loop

    began = stop.clock.now()
    if restart_note(run) is not None:
        # Before anything is loaded: readers drop the steps that are taken again.
        log.write("run.resumed", 0)
    log.write("phase", phase="loading")
    recipe = load_recipe(run.recipe)
    require_packages(recipe.report_to)
    notes: list[str] = list(backend.hints)
    checkpoint.require_some_whole(run, accept=accept, note=notes.append)
    made_of = [inputs.recipe_input(run), *inputs.inputs_of(recipe)]
    inputs.require_unchanged(run, recipe, made_of, accept=accept, note=notes.append)
    notes += inputs.living_start(recipe)
    ranks.lead(dump_recipe(recipe))
    require_same(ranks, recipe, made_of[1:], backend)
    session = assemble(
        recipe,
        backend,
        notes.append,
        lambda source, rows: log.write("data", source=source, rows=rows),
        ranks,
    )
    # Of a million rows, what was computed of all of them leaves 100 MB.
    give_back_freed()
    # Each checkpoint that the run will keep beyond those it has, and the one that is being written: weights
    # and two moments of each (fewer for some optimizers), and the weights of a reference that moves.
    weights = sum(array.nbytes for array in named(session.reference).values())
    every = weights * (3 if session.moving is None else 4) + LEAST_BYTES
    count = min(recipe.save.keep + 1, -(-session.schedule.total // recipe.save.every))
    more = max(1, count - len(list(run.checkpoints.glob("step-*"))))
    require_space(run.checkpoints, every * more)
    made_of = inputs.with_rows(made_of, session)
    inputs.keep(run, made_of)
    extra: dict[str, Any] = {"awake": backend.awake} if backend.awake else {}
    if ranks.size > 1:
        extra |= {"world_size": ranks.size, "ranks": list(ranks.names)}
    log.write(
        "run.started",
        recipe=recipe.model_dump(mode="json"),
        total_steps=session.schedule.total,
        pid=os.getpid(),
        versions=versions(),
        device=backend.device if backend.blas is None else f"{backend.device} ({backend.blas})",
        memory_limit_gb=memory_limit(backend.device) / 1e9,
        **extra,
        model=recipe.model,
        loss=recipe.loss.spec.name,
        kind=recipe.loss.spec.data,
        rows={"train": len(session.train), "valid": len(session.valid)},
        path="shared-prompt" if session.forward.shared else "plain",
    )
    loop = Loop(session, run, log, stop, made_of)
    for note in notes:
        loop.notice("note", note)
    outcome = loop.run()
    ranks.end()
    if outcome.stopped_by is not None:
        saved = loop.saved_step == loop.step
        log.write("run.stopped", loop.step, reason=outcome.stopped_by, saved=saved)
        return STOPPED_EXIT
    log.write("run.finished", loop.step, metrics=outcome.metrics, seconds=stop.clock.now() - began)
    return 0
