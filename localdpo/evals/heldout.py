"""Which prompts a run is asked: those that a person gives, or those it was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from localdpo.core.errors import UserError
from localdpo.core.names import is_demo
from localdpo.core.rundir import RunDir
from localdpo.data.prompts import PromptRow, prompt_row, read_prompt_rows
from localdpo.recipe.load import load_recipe

DEMO_PROMPTS: Final = "demo:prompts/heldout"
GIVEN: Final = "given prompts"


def choose_prompts(
    run: RunDir, file: str | None, texts: Sequence[str], limit: int | None
) -> tuple[list[PromptRow], str]:
    """The given texts and the first `limit` prompts of the given file; without either, of `default_source`.

    The second value says where they come from. Raises UserError(s) for a file without usable prompts.
    """
    given = [prompt_row(text) for text in texts]
    if file is None and given:
        return given, GIVEN
    source = default_source(run) if file is None else file
    return given + read_prompt_rows(source, limit), f"{GIVEN}, {source}" if given else source


def default_source(run: RunDir) -> str:
    """The file of the held-out prompts of a run: what its recipe says, or the demo's own.

    Raises UserError if the recipe names no file of prompts that the run was not trained on.
    """
    recipe = load_recipe(run.recipe)
    source = recipe.eval.prompts or (DEMO_PROMPTS if is_demo(recipe.data.train) else recipe.data.valid)
    if source is None:
        raise UserError(
            f"{run.path}: its recipe names no held-out prompts; give --prompts FILE or --prompt TEXT"
        )
    return source
