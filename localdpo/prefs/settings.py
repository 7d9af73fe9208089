"""From a recipe, or from a model's name and a length, to what the checks go by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from localdpo.core.errors import UserError
from localdpo.data.encode import Limits
from localdpo.data.formats import named_format
from localdpo.prefs.check import Options
from localdpo.prefs.tokenizer import open_tokenizer
from localdpo.recipe.load import load_recipe
from localdpo.recipe.schema import Recipe


def from_recipe(
    recipe: Recipe, *, format_name: str | None, against: Sequence[str], reference: int | None
) -> Options:
    """The checks of a recipe's own data: its limits, and the prompts of its validation and evaluation data.

    Raises UserError for a model that does not load.
    """
    train, data = recipe.train, recipe.data
    limits = Limits(train.max_length, train.max_prompt_length, train.truncation)
    own = [name for name in (data.valid, recipe.eval.prompts) if name is not None]
    score = None
    if reference is not None:
        # Only here is MLX loaded.
        from localdpo.prefs.scoring import scorer

        trust = recipe.trust_remote_code
        score = scorer(recipe.model, recipe.adapter, data.template, limits, trust_remote_code=trust)
    return Options(
        format_name=format_name or data.format,
        tokenizer=open_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code),
        template=data.template,
        limits=limits,
        against=tuple(dict.fromkeys([*own, *against])),
        reference=None if score is None or reference is None else (score, reference),
    )


def options_from(
    recipe: Path | None,
    model: str | None,
    max_length: int | None,
    format_name: str | None,
    against: Sequence[str],
    reference: int | None,
) -> tuple[Options, Recipe | None]:
    """The checks that the options of a command ask for, and the recipe, if one is named.

    Raises UserError(s) for options that do not go together, for the recipe, and for the model.
    """
    if recipe is not None and (model is not None or max_length is not None):
        raise UserError("--recipe names the model and its limits: leave out --model and --max-length")
    if max_length is not None and model is None:
        raise UserError("--max-length counts tokens: give --model too, or --recipe")
    if max_length is not None and max_length < 2:
        raise UserError(f"--max-length: expected 2 or more, got {max_length}")
    if reference is not None and recipe is None:
        raise UserError("--reference scores with a recipe's model and adapter: give --recipe")
    if format_name is not None:
        named_format(format_name, "pairs", "--format")
    if recipe is not None:
        found = load_recipe(recipe)
        return from_recipe(found, format_name=format_name, against=against, reference=reference), found
    options = Options(
        format_name=format_name,
        tokenizer=None if model is None else open_tokenizer(model),
        limits=None if max_length is None else Limits(max_length),
        against=tuple(against),
    )
    return options, None
