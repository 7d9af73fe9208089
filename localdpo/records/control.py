"""The commands that any process can send to the worker of a run: files in `control/`, answered in the log.

A sender writes `control/ID.json` with {"command": "pause"}; the worker deletes it when it takes it and
writes a `control` event {id, command, ok, message} once it has obeyed or refused. IDs sort by the time of
sending. Files of this kind may be written by hand too; `stop` takes a second key, `save` (true unless given).
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from localdpo.core.atomic import write_text
from localdpo.core.errors import UserError
from localdpo.core.text import age
from localdpo.records.events import Event, decode_event, effective, read_events
from localdpo.records.log import LogTail
from localdpo.records.progress import event_age, progress_of
from localdpo.records.rundir import RunDir
from localdpo.records.wording import PHASES

Command = Literal["pause", "resume", "checkpoint", "evaluate", "stop", "cancel"]

COMMANDS: Final[dict[Command, str]] = {
    "pause": "take no further step until resume; the model stays in memory",
    "resume": "continue after a pause",
    "checkpoint": "save a checkpoint after this step",
    "evaluate": "measure held-out pairs and sample answers after this step",
    "stop": "save and stop; it can be resumed",
    "cancel": "drop the commands before it that are not carried out yet",
}
_SUFFIX: Final = ".json"
_LONGEST_FILE: Final = 4096  # bytes; a command has some 40
_LOOK_SECONDS: Final = 0.05


@dataclass(frozen=True)
class CommandFile:
    """A command as the worker finds it. `command` is None where `problem` says what is wrong with it."""

    id: str
    command: Command | None
    save: bool = True
    problem: str | None = None


@dataclass(frozen=True)
class Acknowledgement:
    """What the worker answered: whether it obeyed, and a line about it."""

    id: str
    command: str | None
    ok: bool
    message: str


def acknowledgement_of(event: Event) -> Acknowledgement:
    """What a control event says."""
    ok, message = event.data.get("ok") is True, str(event.data.get("message", ""))
    return Acknowledgement(str(event.data.get("id", "")), event.text("command"), ok, message)


def send(run: RunDir, command: Command, *, save: bool = True) -> str:
    """Give the worker of `run` a command; its id, for `wait_for`.

    `save`: whether a stop saves first. Raises UserError for an unknown command, when no worker runs and when
    the file cannot be written.
    """
    if command not in COMMANDS:
        raise UserError(f"{command}: no such command; expected one of {', '.join(COMMANDS)}")
    if not run.is_running():
        raise UserError(f"{run.path}: no worker is running, so there is nothing to {command}")
    content = {"command": command} if save else {"command": command, "save": False}
    id = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    try:
        run.control.mkdir(exist_ok=True)
        write_text(run.control / f"{id}{_SUFFIX}", json.dumps(content) + "\n")
    except OSError as error:
        raise UserError(f"{run.control}: the command cannot be written: {error.strerror}") from error
    return id


def take(run: RunDir) -> list[CommandFile]:
    """The commands that wait, oldest first; their files are gone then. For the worker alone.

    What is no command is given with its `problem`. A file that cannot be deleted is skipped, since it
    would be obeyed again and again.
    """
    try:
        names = sorted(os.listdir(run.control))
    except (FileNotFoundError, NotADirectoryError):
        return []
    taken = []
    for name in names:
        path = run.control / name
        if name.startswith(".") or path.suffix != _SUFFIX or path.is_symlink() or not path.is_file():
            continue
        try:
            with path.open("rb") as file:
                content = file.read(_LONGEST_FILE + 1)
            path.unlink()
        except OSError:
            continue
        taken.append(_parse(path.stem, content))
    return taken


def wait_for(run: RunDir, id: str, timeout: float) -> Acknowledgement | None:
    """The worker's answer to the command `id`; None if there is none within `timeout` seconds.

    A worker that ends without an answer counts as a refusal.
    """
    deadline, log = time.monotonic() + timeout, LogTail(run.events)
    while True:
        # Looked at before the log is read, so that an answer just before the end is not missed.
        running = run.is_running()
        for _, line in log.lines():
            # Only lines with the id in them are decoded: a log may be long.
            event = decode_event(line) if id.encode() in line else None
            if event is not None and event.type == "control" and event.data.get("id") == id:
                return acknowledgement_of(event)
        if not running:
            return Acknowledgement(id, None, False, "the worker ended before it saw the command")
        if time.monotonic() >= deadline:
            return None
        time.sleep(_LOOK_SECONDS)


def _parse(id: str, content: bytes) -> CommandFile:
    try:
        if len(content) > _LONGEST_FILE:
            raise ValueError(f"longer than {_LONGEST_FILE} bytes")
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        return CommandFile(id, None, problem=f"not a command file: {error}")
    if not isinstance(record, dict) or record.get("command") not in get_args(Command):
        return CommandFile(id, None, problem=f"expected a command, one of {', '.join(COMMANDS)}")
    save: Any = record.get("save", True)
    if not isinstance(save, bool):
        return CommandFile(id, None, problem=f"save: expected true or false, got {save!r}")
    return CommandFile(id, record["command"], save)


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
