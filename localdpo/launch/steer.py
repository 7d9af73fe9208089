"""Giving a command to a run that trains, and waiting for its worker's answer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from localdpo.core.errors import UserError
from localdpo.core.text import age
from localdpo.records.control import Command, send, wait_for
from localdpo.records.events import effective, read_events
from localdpo.records.progress import event_age, progress_of
from localdpo.records.rundir import RunDir
from localdpo.records.wording import PHASES

# Usually a worker that is taking steps answers sooner.
_PATIENCE_SECONDS: Final = 2.0


def steer(
    run: RunDir, command: Command, note: Callable[[str], None], *, save: bool = True, timeout: float = 60.0
) -> str:
    """Give the worker of `run` a command; what it answers within `timeout` seconds.

    `save`: whether a stop saves first. If it takes long, `note` gets a line about what the worker does.
    Raises UserError when no worker runs, it refuses, or it does not answer in time; it obeys later then.
    """
    id = send(run, command, save=save)
    answer = wait_for(run, id, min(_PATIENCE_SECONDS, timeout))
    if answer is None and timeout > _PATIENCE_SECONDS:
        note(f"waiting: {_busy(run)}")
        answer = wait_for(run, id, timeout - _PATIENCE_SECONDS)
    if answer is None:
        raise UserError(
            f"{run.path}: no answer within {timeout:g} s: {_busy(run)}; the command runs after that"
        )
    if not answer.ok:
        raise UserError(f"{run.path}: {answer.message}")
    return answer.message


def _busy(run: RunDir) -> str:
    """What the worker is doing now."""
    progress = progress_of(effective(read_events(run.events)))
    quiet = event_age(progress, time.time())
    last = "" if quiet is None else f", last event {age(quiet)}"
    of = "" if progress.total is None else f" of {progress.total}"
    return f"the worker is busy ({PHASES[progress.phase]}, step {progress.step}{of}{last})"
