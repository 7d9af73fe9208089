"""The options in the texts of recipes."""

from __future__ import annotations

from collections.abc import Mapping

from localdpo.records.wording import flatten


def options_of(text: str) -> dict[str, object] | None:
    """The options in the text of a recipe with dotted keys; None if it is not YAML with keys."""
    import yaml

    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return flatten(values) if isinstance(values, Mapping) else None
