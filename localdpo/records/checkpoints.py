"""Which checkpoint of a run is read, and whether it is intact: the one reader for every command.

The newest checkpoint whose every byte is as its manifest says is the one that is used; those that were
skipped are reported, one line each. LATEST is for people and for mlx-lm: nothing is decided by where it
points, so a link that is gone, broken or no link at all changes no result.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from localdpo.core.atomic import MANIFEST, is_unsupported, replace_symlink, verified_digests
from localdpo.core.errors import UserError
from localdpo.core.names import command_line
from localdpo.records.events import Event, EventTail, effective, read_events
from localdpo.records.rundir import RunDir

LATEST: Final = "LATEST"
STATE_FILE: Final = "state.json"
_NAME: Final = re.compile(r"step-[0-9]{6,}")
# A run that trains may take a checkpoint away while it is read; it has published a newer one by then.
_LOOKS: Final = 20

Note = Callable[[str], None]
Check = Callable[[Path], list[str]]


@dataclass(frozen=True)
class Verified:
    """A folder whose files are as its manifest says; one without a manifest has no digests.

    Attributes:
        digests: the sha256 of each file that was verified, by its name.
    """

    path: Path
    digests: Mapping[str, str]


def checkpoint_folders(checkpoints: Path) -> list[Path]:
    """The folders of published checkpoints in a run's folder of checkpoints, oldest first."""
    if not checkpoints.is_dir():
        return []
    folders = [
        path
        for path in checkpoints.iterdir()
        if _NAME.fullmatch(path.name) and path.is_dir() and not path.is_symlink()
    ]
    return sorted(folders, key=lambda path: (len(path.name), path.name))


def newest_intact(checkpoints: Path, check: Check = lambda folder: []) -> tuple[Verified | None, list[str]]:
    """The newest intact checkpoint in a run's folder of checkpoints, None if there is none; and what is wrong
    with those that were skipped.

    `check` may find more than a damaged byte wrong with a folder, one line each.
    """
    for _ in range(_LOOKS):
        problems: list[str] = []
        for path in reversed(checkpoint_folders(checkpoints)):
            digests, damage = verified_digests(path)
            damage = damage or check(path)
            if not damage:
                return Verified(path, digests), problems
            if not path.is_dir():
                break
            problems += damage
        else:
            return None, problems
    return None, problems


def damage_of(run: RunDir, log: EventTail, *, alive: bool) -> str | None:
    """One line about what is missing in a run's log, read to its end; None where nothing is.

    `alive`: whether a worker may still write it. A log that was cut at the end of a line looks complete,
    but checkpoints of later steps than it holds show the loss.
    """
    lines = [log.damage(alive=alive), None if alive else lost_lines(run, log.last_step)]
    return "; ".join(line for line in lines if line is not None) or None


def lost_lines(run: RunDir, last_step: int) -> str | None:
    """One line if a run has a checkpoint of a later step than the last one in its log."""
    folders = checkpoint_folders(run.checkpoints)
    newest = int(folders[-1].name.removeprefix("step-")) if folders else 0
    if newest <= last_step:
        return None
    return f"{run.events}: lines are lost (it ends at step {last_step:,}, a checkpoint is of step {newest:,})"


def read_log(run: RunDir, note: Note, *, alive: bool) -> list[Event]:
    """Every event of a run's log; `note` gets one line about what is damaged or lost (see `damage_of`)."""
    log = EventTail(run.events)
    events = log.poll()
    damage = damage_of(run, log, alive=alive)
    if damage is not None:
        note(damage)
    return events


def newest_checkpoint(run: RunDir) -> Path | None:
    """The folder of the run's newest intact checkpoint, None if there is none."""
    checkpoint, _ = newest_intact(run.checkpoints)
    return None if checkpoint is None else checkpoint.path


def restart_note(run: RunDir) -> str | None:
    """One line where a run that is resumed takes its steps again from 0, as it has no checkpoint yet."""
    if checkpoint_folders(run.checkpoints):
        return None
    steps = [event.step for event in effective(read_events(run.events)) if event.type == "step"]
    if not steps:
        return None
    return (
        f"{run.name}: step {steps[-1]} was reached before the first checkpoint, so it starts again at step 0"
    )


def require_checkpoint(run: RunDir, note: Note) -> Verified:
    """The run's newest intact checkpoint; `note` gets one line when newer ones were skipped.

    Raises UserError when there is none.
    """
    return _required(run.checkpoints, f"{run.path}: no checkpoint to use", note)


def _required(checkpoints: Path, missing: str, note: Note | None) -> Verified:
    checkpoint, problems = newest_intact(checkpoints)
    damage = "; ".join(problems)
    if checkpoint is None:
        raise UserError(
            f"{missing}: all are damaged: {damage}"
            if problems
            else f"{missing} yet; a run saves one every save.every steps, at its end, and when "
            f"`{command_line('ctl', 'RUN', 'checkpoint')}` asks for it"
        )
    if problems and note is None:
        raise UserError(f"damaged checkpoint: {damage}; the newest intact one is {checkpoint.path}")
    if problems and note is not None:
        note(f"skipped a damaged checkpoint: {damage}; used instead: {checkpoint.path}")
    return checkpoint


def verified_adapter(folder: Path, files: tuple[str, ...], note: Note | None = None) -> Verified:
    """The folder of an adapter, after its `files` were compared with the manifest if there is one.

    A run's LATEST stands for the newest intact checkpoint beside it, wherever it points; `note` gets one
    line when newer ones were skipped, and without a note that is an error.

    Raises UserError for a damaged file, and for a run's LATEST without a intact checkpoint.
    """
    if folder.name == LATEST and checkpoint_folders(folder.parent):
        return _required(folder.parent, f"{folder}: no checkpoint to use", note)
    # Every checkpoint has a manifest; an adapter that others made has none.
    if not (folder / MANIFEST).exists() and not (folder / STATE_FILE).exists():
        return Verified(folder, {})
    digests, problems = verified_digests(folder, files)
    if problems:
        raise UserError(f"{'; '.join(problems)}; expected the adapter as it was saved: name another one")
    return Verified(folder, digests)


def set_latest(checkpoint: Path) -> None:
    """Point LATEST at a published checkpoint beside it. A folder of that name is set aside, not deleted.

    On a disk without symbolic links there is no LATEST; `adapter_folder` names the checkpoint itself then.
    """
    if _NAME.fullmatch(checkpoint.name) is None:
        raise ValueError(f"{checkpoint} is no checkpoint")
    link = checkpoint.parent / LATEST
    if link.is_symlink() and os.readlink(link) == checkpoint.name:
        return
    if link.is_dir() and not link.is_symlink():
        # Copying a run with its links followed makes one.
        names = (link.with_name(f"{LATEST}.aside-{number}") for number in count(1))
        os.rename(link, next(name for name in names if not os.path.lexists(name)))
    try:
        replace_symlink(link, checkpoint.name)
    except OSError as error:
        if not is_unsupported(error):
            raise


def adapter_folder(run: RunDir) -> Path:
    """Where people and mlx-lm find the run's adapter: LATEST, or the newest checkpoint without a link."""
    newest = None if run.latest.is_symlink() else newest_checkpoint(run)
    return run.latest if newest is None else newest
