"""Where an artefact goes: a folder that is not there yet, or an earlier artefact that may be replaced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from localdpo.core.atomic import clean_leftovers, published_dir, require_space
from localdpo.core.errors import UserError

# The file by which an artefact is known.
RECORD: Final = "export.json"


@dataclass(frozen=True)
class Artefact:
    """What will be written.

    Attributes:
        size: bytes that it takes on the disk, at most.
        write: puts its files into an empty folder, and returns lines that a person should read.
    """

    size: int
    write: Callable[[Path], list[str]]


def check_place(place: Path, size: int, *, force: bool) -> None:
    """Raise UserError unless an artefact of `size` bytes can be written as the folder `place`.

    Nothing but an earlier artefact is ever replaced, and that with `force` alone.
    """
    if place.is_symlink():
        raise UserError(
            f"{place}: this is a link, which is neither followed nor replaced; name another folder"
        )
    if place.exists() and not (place / RECORD).is_file():
        raise UserError(
            f"{place}: exists already, without {RECORD} in it, so it is not replaced; name another folder"
        )
    if place.exists() and not force:
        raise UserError(f"{place}: exists already; name another folder, or give --force to replace it")
    require_space(place, size)


def make_parent(place: Path) -> None:
    """Create the folder that `place` is to be in, and clear what a killed command left there.

    Raises UserError where it cannot be written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        clean_leftovers(place.parent, shared=True)
    except OSError as error:
        raise UserError(
            f"{place.parent}: cannot be written: {error.strerror}; name another folder"
        ) from error
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise UserError(f"{place.parent}: no permission to write here; name another folder")


@contextlib.contextmanager
def written(place: Path, artefact: Artefact) -> Iterator[tuple[Path, list[str]]]:
    """A folder with the files of the artefact, and lines that a person should read; it becomes `place` when
    the block ends, and is removed when the block raises.

    Raises UserError where the disk is full or `place` cannot be written.
    """
    make_parent(place)
    with published_dir(place, artefact.size) as folder:
        yield folder, artefact.write(folder)
