"""The options in the texts of recipes, and in which two of them differ."""

from __future__ import annotations

from collections.abc import Mapping

from localdpo.core.differing import differing, flatten
from localdpo.core.errors import UserError, UserErrors


def options_of(text: str) -> dict[str, object] | None:
    """The options in the text of a recipe with dotted keys; None if it is not YAML with keys.

    Options that the text does not have are there with their defaults: a run that began before there was an
    option has it all the same. Of what is no recipe (of this version), only what the text has.
    """
    import yaml

    from localdpo.recipe.load import dump_recipe, parse_recipe

    try:
        recipe = parse_recipe(text, "recipe.yaml")
    except (UserError, UserErrors):
        recipe = None
    try:
        values = yaml.safe_load(text if recipe is None else dump_recipe(recipe))
    except yaml.YAMLError:
        return None
    if not isinstance(values, Mapping):
        return None
    options = flatten(values)
    if recipe is not None and recipe.train.epochs is recipe.train.max_steps is None:
        # Versions that had no null wrote the same as 1.
        options["train.epochs"] = 1
    return options


def differing_keys(old_text: str, new_text: str) -> str:
    """`loss.beta: 0.1 there, 0.2 here; ...`: the first keys in which two recipes differ; "" if none does."""
    rows = differing([options_of(old_text) or {}, options_of(new_text) or {}])
    differences = [
        f"{key}: {old or 'not set'} there, {new or 'not set'} here" for key, (old, new) in rows[:3]
    ]
    return "; ".join([*differences, *([f"and {len(rows) - 3} more"] if len(rows) > 3 else [])])
