"""`localdpo export`: from a run to an artefact of another program, checked before it is called done, and
uploaded to the Hugging Face hub.

`runs/NAME/exports.jsonl` has a line for every export that was checked: the fields of its export.json, and

    {"time":1700000000.0,...,"path":"exports/demo-mlx","written":true}

`written` is false for one that failed its check. See records/log.py for how lines are written.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2
import mlx.core as mx
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError

from localdpo import __version__
from localdpo.core.atomic import MANIFEST
from localdpo.core.errors import UserError
from localdpo.interop.card import write_card
from localdpo.interop.check import ArtefactCheck, ArtefactReport
from localdpo.interop.folder import RECORD, check_place, write_json, written
from localdpo.interop.targets import Settings, target_of
from localdpo.interop.trained import Trained, base_of, open_trained, original_of, public
from localdpo.model.load import first_line
from localdpo.records.events import finite
from localdpo.records.log import LogWriter, encode
from localdpo.records.rundir import RunDir

VERSION: Final = 1
Note = Callable[[str], None]


@dataclass(frozen=True)
class ExportRequest:
    """What a person asked for; see `localdpo export --help`.

    Attributes:
        out: folder of the artefact (of the layout, for a target that has one); None: exports/RUN-TARGET.
        force: replace an earlier export, and keep one that failed its check.
        repo: where it will be uploaded, for its card to name; None: nowhere.
    """

    run: RunDir
    target: str
    out: Path | None = None
    settings: Settings = field(default_factory=Settings)
    checkpoint: str | None = None
    force: bool = False
    repo: str | None = None


@dataclass(frozen=True)
class Export:
    """An export that was checked.

    Attributes:
        path: of the artefact; written: whether it is there.
        record: the content of its export.json.
    """

    path: Path
    written: bool
    check: ArtefactReport
    record: dict[str, Any]


def export(request: ExportRequest, note: Note) -> Export:
    """Write the artefact beside its place, load it again, compare it with base + adapter, and put it there.

    One that keeps less than it must is removed, unless `force` is given. `note` gets a line for what a person
    should know.

    Raises UserError(s): what was asked for does not exist, has no place in the target's layout, or does not
    fit on the disk.
    """
    target = target_of(request.target, request.settings)
    name = request.run.name
    place = Path(request.out or Path("exports") / f"{name}-{target.name}").expanduser()
    if target.place:
        place = place.joinpath(*target.place, name)
    trained = open_trained(request.run, request.checkpoint, note)
    artefact = target.prepare(trained, request.settings)
    used = [trained.base, Path(trained.recipe.model).expanduser()]
    check_place(place, artefact.size, used, force=request.force)
    note("scoring rows of the run under base + adapter")
    check = ArtefactCheck(trained)
    _free()
    note(f"writing {target.what}")
    try:
        with written(place, artefact, replace=request.force) as (folder, lines):
            for line in lines:
                note(line)
            _free()
            note("loading it again, and scoring the same rows")
            result = check.compare(target.load(trained, folder))
            record = _record(trained, request, result)
            if not (result.passed or request.force):
                raise _CheckFailed
            write_json(folder / RECORD, record)
            write_card(folder, trained, target, result, request.repo or place.name)
        is_written = True
    except _CheckFailed:
        is_written = False
    with LogWriter(trained.run.exports) as log:
        log.append(encode({"time": time.time(), **record, "path": str(place), "written": is_written}))
    return Export(place, is_written, result, record)


class _CheckFailed(Exception):
    """Ends the writing of an artefact, so that nothing of it stays."""


def _record(trained: Trained, request: ExportRequest, result: ArtefactReport) -> dict[str, Any]:
    """The content of export.json, without the folders of this machine."""
    recipe = trained.recipe
    base, original = base_of(recipe, trained.base), original_of(recipe, trained.base)
    return {
        "v": VERSION,
        "localdpo": __version__,
        "target": request.target,
        "run": trained.run.name,
        "checkpoint": trained.adapter.name,
        "base_model": base.name,
        "original_model": None if original is None else public(original),
        "settings": asdict(request.settings),
        "check": finite(result.to_json()),
    }


def _free() -> None:
    """Let go of the model that was used last, before the next one is loaded."""
    gc.collect()
    mx.clear_cache()


def push(folder: Path, repo: str) -> str:
    """Upload an export to a model repository, made private where there is none; its address.

    Raises UserError when the hub refuses or cannot be reached.
    """
    api = HfApi()
    try:
        repo_id = api.create_repo(repo, private=True, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message="Upload an export of localdpo",
            # The sizes and digests of this disk's files; the hub has its own.
            ignore_patterns=[MANIFEST],
        )
    except (httpx2.HTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"--push {repo}: the hub says: {first_line(error)}; the export stays in {folder} "
            "(`hf auth login` signs in)"
        ) from error
    return str(commit.repo_url)
