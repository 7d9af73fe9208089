"""From a request to train to the folder of the run: a new one, or the one that is resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localdpo.core.atomic import LEAST_BYTES, require_space
from localdpo.core.errors import UserError, UserErrors
from localdpo.launch.recipediff import options_of
from localdpo.recipe.load import dump_recipe, follow_links, load_recipe, parse_recipe
from localdpo.recipe.schema import Recipe
from localdpo.records.rundir import RunDir, already_running, check_name, find_folder, runs_of, spelled
from localdpo.records.wording import differing

Note = Callable[[str], None]


@dataclass(frozen=True)
class TrainRequest:
    """What a person asked to train; nothing is read yet.

    Attributes:
        recipe: a file, or a recipe that was read already; None: the recipe of the run that is resumed.
        overrides: `KEY=VALUE` on top of a file.
        run: the run's name; None: one after the file, or the latest run of it where `resume` is set.
        accept_changes: resume although data, model or adapter changed since.
        kind: of folder: that of a run, or of a series of runs.
    """

    recipe: Path | Recipe | None
    overrides: tuple[str, ...] = ()
    run: str | None = None
    runs_dir: Path = Path("runs")
    resume: bool = False
    accept_changes: bool = False
    kind: type[RunDir] = RunDir

    @property
    def stem(self) -> str:
        """What a run of the recipe is named after."""
        return self.recipe.stem if isinstance(self.recipe, Path) else "run"


def open_run(
    request: TrainRequest,
    note: Note,
    text: str | None = None,
    differences: Callable[[str, str], str] | None = None,
) -> RunDir:
    """The run to train, created if it is new. Raises UserError(s) for everything that prevents it.

    `note` gets a line for each link of the recipe that leads elsewhere now. `text`: what the folder belongs
    to, and `differences` between two of them, where that is no recipe.
    """
    known = known_run(request)
    # A series whose maker was killed may have a run that is still being trained; its next maker waits for it.
    if known is not None and known.is_locked():
        raise already_running(known)
    if known is None and request.accept_changes:
        raise UserError("--accept-changes resumes a run: give its name with --run, or --resume")
    require_space(request.runs_dir, LEAST_BYTES)
    if text is None:
        text = dump_recipe(resolve_recipe(request, known, note))
    differences = differences or differing_keys
    if known is not None:
        return request.kind.create(known.path.parent, known.name, text, differences)
    if request.run is not None:
        return request.kind.create(request.runs_dir, request.run, text, differences)
    return request.kind.create_new(request.runs_dir, request.stem, text)


def known_run(request: TrainRequest) -> RunDir | None:
    """The run that the request resumes, None for a new one."""
    if request.run is not None:
        # A run of a series is named with it.
        for part in request.run.split("/", 1) if request.kind is RunDir else [request.run]:
            check_name(part)
        run = request.kind(spelled(request.runs_dir / request.run))
        if request.resume and not run.exists():
            return find_folder(request.runs_dir, request.run, request.kind)
        return run if run.exists() else None
    if not request.resume or request.recipe is None:
        return None
    runs = runs_of(request.runs_dir, request.stem, request.kind)
    if not runs:
        of = request.recipe if isinstance(request.recipe, Path) else "this recipe"
        raise UserError(f"{request.runs_dir}: no run of {of} to resume; remove --resume to start one")
    return runs[0]


def resolve_recipe(request: TrainRequest, known: RunDir | None, note: Note) -> Recipe:
    """The recipe of the request; without one, that of the run itself. Its links are followed."""
    recipe = request.recipe
    if recipe is None:
        if known is None:
            raise UserError(f"{request.runs_dir}: no run named {request.run!r}")
        recipe = known.recipe
    if isinstance(recipe, Path):
        recipe = load_recipe(recipe, request.overrides)
    resolved, lines = follow_links(recipe, None if known is None else load_recipe(known.recipe))
    for line in lines:
        note(line)
    return resolved


def differing_keys(old_text: str, new_text: str) -> str:
    """`loss.beta: 0.1 there, 0.2 here; ...`: the first keys in which two recipes differ; "" if none does.

    Two spellings of one file or folder are no difference.
    """
    rows = [
        (key, old, new)
        for key, (old, new) in differing([_all_options(old_text), _all_options(new_text)])
        if not (old and os.path.exists(new) and os.path.abspath(old) == os.path.abspath(new))
    ]
    differences = [f"{key}: {old or 'not set'} there, {new or 'not set'} here" for key, old, new in rows[:3]]
    return "; ".join([*differences, *([f"and {len(rows) - 3} more"] if len(rows) > 3 else [])])


def _all_options(text: str) -> dict[str, object]:
    """The options in the text of a recipe with dotted keys, and the defaults of those that it does not have:
    a run that began before there was an option has it all the same. Of what is no recipe, only what it has.
    """
    try:
        recipe = parse_recipe(text, "recipe.yaml")
    except (UserError, UserErrors):
        return options_of(text) or {}
    options = options_of(dump_recipe(recipe)) or {}
    if recipe.train.epochs is recipe.train.max_steps is None:
        # Versions that had no null wrote 1, and meant the same.
        options["train.epochs"] = 1
    return options
