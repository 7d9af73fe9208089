"""`localdpo ctl`: give a running worker a command and wait for its answer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from localdpo.core.errors import UserError
from localdpo.out import say
from localdpo.records.control import COMMANDS, Command, send, wait_for
from localdpo.records.rundir import find_run

if TYPE_CHECKING:
    from localdpo.records.control import Acknowledgement
    from localdpo.records.rundir import RunDir

# A worker that is only taking steps answers sooner than that, as a rule.
_PATIENCE_SECONDS: Final = 2.0
_MEANINGS: Final = "; ".join(f"{command}: {meaning}" for command, meaning in COMMANDS.items())


def ctl(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of the run.")],
    command: Annotated[str, typer.Argument(metavar="COMMAND", help=f"{_MEANINGS}.")],
    save: Annotated[
        bool, typer.Option("--save/--no-save", help="With stop: whether to save a checkpoint first.")
    ] = True,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.0, help="How long to wait for the answer.")
    ] = 60.0,
    runs_dir: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs.")] = Path("runs"),
) -> None:
    """Pause, resume, checkpoint, evaluate or stop a run that is training, from anywhere."""
    wanted = _command(command)
    if not save and wanted != "stop":
        raise UserError(f"--no-save goes with stop alone, not with {wanted}")
    found = find_run(runs_dir, run)
    answer = _wait(found, send(found, wanted, save=save), timeout)
    if answer is None:
        raise UserError(
            f"{found.path}: no answer within {timeout:g} s: {_busy(found)}; it obeys when that is done"
        )
    if not answer.ok:
        raise UserError(f"{found.path}: {answer.message}")
    say(answer.message)


def _command(name: str) -> Command:
    for command in COMMANDS:
        if command == name:
            return command
    raise UserError(f"{name}: no such command; expected one of {', '.join(COMMANDS)}")


def _wait(run: RunDir, id: str, timeout: float) -> Acknowledgement | None:
    """Wait for the answer; say on stderr what the worker is busy with when it takes long."""
    answer = wait_for(run, id, min(_PATIENCE_SECONDS, timeout))
    if answer is None and timeout > _PATIENCE_SECONDS:
        say(f"waiting: {_busy(run)}", error=True)
        answer = wait_for(run, id, timeout - _PATIENCE_SECONDS)
    return answer


def _busy(run: RunDir) -> str:
    """What the worker does instead of answering."""
    from localdpo.core.text import age
    from localdpo.records.events import effective, read_events
    from localdpo.records.progress import event_age, progress_of
    from localdpo.records.wording import PHASES

    progress = progress_of(effective(read_events(run.events)))
    quiet = event_age(progress, time.time())
    last = "" if quiet is None else f", last event {age(quiet)}"
    of = "" if progress.total is None else f" of {progress.total}"
    return f"the worker is busy ({PHASES[progress.phase]}, step {progress.step}{of}{last})"
