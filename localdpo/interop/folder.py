"""The folder of an artefact: where it goes, and the layout that mlx-lm and transformers share.

It goes where no folder is yet, or where an earlier artefact is that may be replaced. The layout is a config,
weights in shards and the files of the tokenizer.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import mlx.core as mx
from mlx_lm.utils import make_shards, save_config

from localdpo.core.atomic import (
    clean_leftovers,
    entries,
    make_folder,
    published_dir,
    published_names,
    require_space,
)
from localdpo.core.errors import UserError
from localdpo.model.load import TOKENIZER_FILES

# Of these models transformers has the same names, shapes and meaning for every weight that mlx-lm has. Tested
# against transformers itself (tests/parity); another may differ in a way that no loader reports, as with
# norms that are stored less one.
SAME_NAMES = frozenset(
    (
        *("gemma", "gemma2", "gemma3_text", "granite", "llama"),
        *("mistral", "olmo2", "phi3", "qwen2", "qwen3"),
    )
)


def require_same_names(config: dict[str, Any]) -> None:
    """Raise UserError for a model whose weights transformers may know by other names than mlx-lm does."""
    if config["model_type"] not in SAME_NAMES:
        raise UserError(
            f"model_type {config['model_type']}: its weights may have other names in transformers than in "
            f"mlx-lm; expected one of {', '.join(sorted(SAME_NAMES))}; --to mlx takes every model"
        )


def nbytes(weights: dict[str, mx.array]) -> int:
    """Bytes of these arrays, whether they are evaluated or not."""
    return sum(array.nbytes for array in weights.values())


def write_weights(folder: Path, weights: dict[str, mx.array], framework: Literal["mlx", "pt"]) -> None:
    """model.safetensors, or its shards, and their index. `weights` is emptied, so that of weights which are
    computed only now no more than a shard is in memory.
    """
    total = nbytes(weights)
    shards = make_shards(weights)
    weights.clear()
    count, owners = len(shards), dict[str, str]()
    for number in range(count):
        shard, shards[number] = shards[number], {}
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
        mx.save_safetensors(str(folder / file), shard, metadata={"format": framework})
        owners |= dict.fromkeys(shard, file)
        del shard
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(owners.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """config.json, with mlx-lm's writer, which knows the numbers that JSON lacks."""
    save_config(dict(config), folder / "config.json")


def write_json(path: Path, value: Any) -> None:
    """A JSON file of several lines."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_files(base: Path) -> list[Path]:
    """What of a model's folder decides how text becomes tokens and back, and its own code."""
    found = {path for pattern in (*TOKENIZER_FILES, "*.py") for path in base.glob(pattern)}
    return sorted(path for path in found if path.parent == base and path.is_file())


def tokenizer_bytes(base: Path) -> int:
    return sum(path.stat().st_size for path in tokenizer_files(base))


def copy_tokenizer(base: Path, folder: Path) -> list[str]:
    """Copy the `tokenizer_files` as they are: a tokenizer that is read and saved again may come out as
    another one. Returns a line on what stays behind.
    """
    for path in tokenizer_files(base):
        # The content: the files of the hub's cache are links.
        shutil.copyfile(path, folder / path.name)
    left = sorted(path.parent.name for path in base.glob("additional_chat_templates/*.jinja"))
    return [f"{left[0]}: these further chat templates are not copied"] if left else []


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
