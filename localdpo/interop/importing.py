"""`localdpo import`: what other programs made, in mlx-lm's layout. What it is, its content says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import mlx.core as mx

from localdpo import __version__
from localdpo.core.errors import UserError
from localdpo.interop.folder import write_json
from localdpo.interop.peft import from_peft, is_peft
from localdpo.interop.place import Artefact, check_place, written
from localdpo.model import lora
from localdpo.model.load import build_model, read_json_object

RECORD: Final = "import.json"
VERSION: Final = 1


@dataclass(frozen=True)
class Importer:
    """A kind of file or folder that can be imported.

    Attributes:
        what: it is, in a few words.
        matches: whether a path is one; looks at names and first bytes, and never fails.
        prepare: from the path and the name of the base model (None: what the file says) to what will be
            written; raises UserError(s) for what mlx-lm has no place for.
    """

    what: str
    matches: Callable[[Path], bool]
    prepare: Callable[[Path, str | None], Artefact]


def import_path(
    source: Path, out: Path, *, model: str | None, force: bool, note: Callable[[str], None]
) -> str:
    """Write what is at `source` as the folder `out`; returns what it is.

    Raises UserError(s) for what is not there, is of no known kind, or does not fit its base model.
    """
    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    if (source / lora.WEIGHTS_FILE).is_file():
        raise UserError(
            f"{source}: this is an adapter of mlx-lm already; name it in a recipe as it is, adapter: {source}"
        )
    importer = next((entry for entry in IMPORTERS if entry.matches(source)), None)
    if importer is None:
        known = "; ".join(entry.what for entry in IMPORTERS)
        raise UserError(f"{source}: of no kind that can be imported; expected one of: {known}")
    artefact = importer.prepare(source, model)
    check_place(out, artefact.size, RECORD, force=force)
    with written(out, artefact) as (folder, lines):
        for line in lines:
            note(line)
        record = {"v": VERSION, "localdpo": __version__, "from": importer.what, "source": source.name}
        write_json(folder / RECORD, record)
    return importer.what


def _peft(source: Path, model: str | None) -> Artefact:
    config = source / lora.CONFIG_FILE
    name = model or read_json_object(config).get("base_model_name_or_path")
    if not isinstance(name, str):
        raise UserError(
            f"{config} base_model_name_or_path: expected the base model's name; give it with --model"
        )
    base, _ = build_model(name)
    shape, weights = from_peft(source, base)
    lora.attach(base, shape, seed=0)
    lora.set_weights(base, weights, source)

    def write(folder: Path) -> list[str]:
        write_json(folder / lora.CONFIG_FILE, shape.to_json(name))
        mx.save_safetensors(str(folder / lora.WEIGHTS_FILE), weights)
        return [f"{shape.type} adapter of rank {shape.rank}, scale {shape.scale:g}, for {name}"]

    return Artefact(sum(array.nbytes for array in weights.values()) + 2**20, write)


IMPORTERS: Final = (
    Importer(f"the folder of a PEFT adapter ({lora.CONFIG_FILE} and {lora.PEFT_FILES[0]})", is_peft, _peft),
)
