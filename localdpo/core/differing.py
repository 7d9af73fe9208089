"""In which options recipes differ. Pure; needs nothing of the recipe's schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def flatten(values: object, prefix: str = "") -> dict[str, object]:
    """Nested mappings, and lists of them, as one with keys such as `data.train[0].source`."""
    flat: dict[str, object] = {}
    if isinstance(values, Mapping):
        for key, value in values.items():
            flat.update(flatten(value, f"{prefix}.{key}" if prefix else str(key)))
    elif isinstance(values, list) and any(isinstance(value, Mapping) for value in values):
        for index, value in enumerate(values):
            flat.update(flatten(value, f"{prefix}[{index}]"))
    else:
        flat[prefix] = values
    return flat


def differing(recipes: Sequence[Mapping[str, object]]) -> list[tuple[str, list[str]]]:
    """The keys whose values are not the same in all recipes, with the value in each ("" where unset)."""
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    rows = []
    for key in keys:
        values = [words(recipe[key]) if key in recipe else "" for recipe in recipes]
        if len(set(values)) > 1:
            rows.append((key, values))
    return rows


def words(value: object) -> str:
    """A value of a recipe as it is written there."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
