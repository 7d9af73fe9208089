"""Symbolic links in a recipe: followed when a run is made, so that a link that moves changes no run.

`adapter: runs/sft/checkpoints/LATEST` becomes `runs/sft/checkpoints/step-000120` in the run's recipe. Its
reference is that checkpoint for good, whatever the other run saves later.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from localdpo.core.names import is_demo
from localdpo.recipe.schema import Recipe
from localdpo.records.checkpoints import LATEST, Note, checkpoint_folders, verified_adapter

OPTIONS: Final = ("model", "adapter")
# As many as Linux follows in one path.
_MOST_LINKS: Final = 40


def follow_links(recipe: Recipe, kept: Recipe | None = None) -> tuple[Recipe, list[str]]:
    """The recipe with the links in `model` and `adapter` followed; other paths stay as they were written.

    Raises UserError for the LATEST of a run without a whole checkpoint.

    `kept` is the recipe of the run that goes on: where a link led to a neighbour of what it leads to now (as
    LATEST does), the run keeps what it has, and a line says so.
    """
    changed: dict[str, str] = {}
    lines: list[str] = []
    for option in OPTIONS:
        name = getattr(recipe, option)
        was = None if kept is None else getattr(kept, option)
        if name is None or is_demo(name) or name == was:
            continue
        target = _checkpoint(name, lines.append) or followed(name)
        if target != name and was is not None and was != target and Path(was).parent == Path(target).parent:
            lines.append(f"{option} {name} leads to {target} now; this run keeps {was}")
            target = was
        changed[option] = target
    return recipe.model_copy(update=changed), lines


def _checkpoint(name: str, note: Note) -> str | None:
    """The newest whole checkpoint of the run whose LATEST `name` is, wherever it points; None for others."""
    path = Path(name).expanduser()
    folder = Path(followed(str(path.parent)))
    if path.name != LATEST or not checkpoint_folders(folder):
        return None
    return str(verified_adapter(folder / LATEST, (), note).path)


def followed(name: str) -> str:
    """The path `name` without links; as it is where there are none. What does not exist stays as it is.

    Links in the root folder are the system's own (/tmp on macOS) and are left alone.
    """
    path = Path(name).expanduser()
    found, rest, links = Path(path.anchor), [*path.relative_to(path.anchor).parts], 0
    while rest:
        step = found / rest.pop(0)
        if found != Path("/") and step.is_symlink() and links < _MOST_LINKS:
            links += 1
            target = Path(os.readlink(step))
            found = Path(target.anchor) if target.is_absolute() else found
            rest = [*target.relative_to(target.anchor).parts, *rest]
        else:
            found = step
    # No link is left, so that `x/..` can go.
    return os.path.normpath(found) if links else name
