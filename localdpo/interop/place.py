"""Where an artefact goes: a folder that is not there yet, or an earlier artefact that may be replaced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from localdpo.core.atomic import (
    clean_leftovers,
    entries,
    make_folder,
    published_dir,
    published_names,
    require_space,
)
from localdpo.core.errors import UserError

# The file by which an artefact is known.
RECORD: Final = "export.json"
# For configs, index, card and record, and what the file system adds.
_SMALL_FILES: Final = 2**20


@dataclass(frozen=True)
class Artefact:
    """What will be written.

    Attributes:
        content: bytes of its weights and of the files that are copied.
        write: puts its files into an empty folder, and returns lines that a person should read.
    """

    content: int
    write: Callable[[Path], list[str]]

    @property
    def size(self) -> int:
        """Bytes that it takes on the disk, at most."""
        return self.content + _SMALL_FILES


def check_place(place: Path, size: int, used: Sequence[Path], *, force: bool) -> None:
    """Raise UserError unless an artefact of `size` bytes can be written as the folder `place`.

    Nothing but an earlier artefact is ever replaced, and that with `force` alone, if no person put anything
    into it and none of the `used` files and folders is it or in it.
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
    names = published_names(place)
    if others := [path.name for path in entries(place) if path.name not in names]:
        raise UserError(
            f"{place}: {others[0]} in it is not of an export, so it is not replaced; move it away or name "
            "another folder"
        )
    for path in (path.resolve() for path in used if place.exists()):
        if place.resolve() in (path, *path.parents):
            raise UserError(f"{place}: the run's own base model is there; name another folder")
    _require_parent(place)
    require_space(place, size)


def _require_parent(place: Path) -> None:
    folder = next(parent for parent in place.absolute().parents if parent.exists())
    if not folder.is_dir():
        raise UserError(f"{folder}: is a file, so nothing can be written below it; name another folder")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: no permission to write here; name another folder")


def make_parent(place: Path) -> None:
    """Create the folder that `place` is to be in, and clear what a killed command left there.

    Raises UserError where it cannot be written.
    """
    _require_parent(place)
    make_folder(place.parent)
    try:
        clean_leftovers(place.parent, shared=True)
    except OSError as error:
        raise UserError(
            f"{place.parent}: cannot be written: {error.strerror}; name another folder"
        ) from error


@contextlib.contextmanager
def written(place: Path, artefact: Artefact, *, replace: bool) -> Iterator[tuple[Path, list[str]]]:
    """A folder with the files of the artefact, and lines that a person should read; it becomes `place` when
    the block ends, and is removed when the block raises.

    Raises UserError where the disk is full or `place` cannot be written, and where another process wrote it
    meanwhile unless it is to `replace` what is there.
    """
    make_parent(place)
    with published_dir(place, artefact.size, replace=replace) as folder:
        yield folder, artefact.write(folder)
