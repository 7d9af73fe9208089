"""From a recipe, or from a model's name and a length, to what the checks go by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from localdpo.core.errors import UserError
from localdpo.data.encode import Limits
from localdpo.data.formats import named_format
from localdpo.prefs.check import Options
from localdpo.prefs.tokenizer import open_tokenizer
from localdpo.recipe.load import load_recipe
from localdpo.recipe.schema import DataSource, Recipe

# Has no options of its own.
UNLISTED: Final = DataSource(source="unlisted")


def from_recipe(
    recipe: Recipe,
    *,
    source: str,
    format_name: str | None,
    against: Sequence[str],
    reference: int | None,
) -> Options:
    """The checks of a recipe's own data: its limits, and the prompts of its validation and evaluation data.

    `source` is the data to check; what the recipe's list says of it goes before the recipe's own options.
    Raises UserError for a model that does not load.
    """
    train, data = recipe.train, recipe.data
    entries = [*data.train_sources, *data.valid_sources]
    entry = next((each for each in entries if each.source == source), UNLISTED)
    limits = Limits(
        entry.max_length or train.max_length,
        entry.max_prompt_length or train.max_prompt_length,
        entry.truncation or train.truncation,
    )
    own = [each.source for each in data.valid_sources]
    own += [recipe.eval.prompts] if recipe.eval.prompts is not None else []
    score = None
    if reference is not None:
        # Only here is MLX loaded.
        from localdpo.prefs.scoring import scorer

        trust = recipe.trust_remote_code
        score = scorer(
            recipe.model,
            recipe.adapter,
            data.template,
            limits,
            template_kwargs=data.chat_template_kwargs,
            trust_remote_code=trust,
        )
    return Options(
        format_name=format_name or entry.format or data.format,
        tokenizer=open_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code),
        template=data.template,
        template_kwargs=data.chat_template_kwargs,
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
    data: str | None,
) -> tuple[Options, str]:
    """The checks that the options of a command ask for, and what to check: `data`, or the recipe's own.

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
        source = source_of(data, found)
        return from_recipe(
            found, source=source, format_name=format_name, against=against, reference=reference
        ), source
    source = source_of(data, None)
    options = Options(
        format_name=format_name,
        tokenizer=None if model is None else open_tokenizer(model),
        limits=None if max_length is None else Limits(max_length),
        against=tuple(against),
    )
    return options, source


def source_of(data: str | None, recipe: Recipe | None) -> str:
    """The data to check: what is named, or the recipe's. Raises UserError for neither, and for several."""
    if data is not None:
        return data
    if recipe is None:
        raise UserError("no data: name a file or data set of pairs, or give --recipe")
    names = [entry.source for entry in recipe.data.train_sources]
    if len(names) > 1:
        raise UserError(f"the recipe trains on {len(names)} data sets: name one of {', '.join(names)}")
    return names[0]
