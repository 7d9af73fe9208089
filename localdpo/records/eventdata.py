"""What stands in an event's data, or None where it does not: a log may be of another version, or cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from localdpo.records.events import Event

ACCURACY: Final = "rewards/accuracies"
TIES: Final = "rewards/ties"


def metrics_of(event: Event | None) -> Mapping[str, Any]:
    """The metrics of a step, eval or run.finished event; empty for any other.

    Where all pairs are tied, as at step 0, none is ranked: the accuracy is None, a gap, and no 0.
    """
    metrics = event.data.get("metrics") if event is not None else None
    if not isinstance(metrics, Mapping):
        return {}
    return {**metrics, ACCURACY: None} if ACCURACY in metrics and all_tied(metrics) else metrics


def all_tied(metrics: Mapping[str, Any]) -> bool:
    """Whether both answers of every pair had the same reward."""
    return metrics.get(TIES) == 1


def metric(event: Event | None, name: str) -> float | None:
    """One metric, None where it is missing or was not finite."""
    return as_number(metrics_of(event).get(name))


def number(event: Event, key: str) -> float | None:
    """The number under `key`."""
    return as_number(event.data.get(key))


def text(event: Event | None, key: str) -> str | None:
    """The text under `key`."""
    value = event.data.get(key) if event is not None else None
    return value if isinstance(value, str) else None


def recipe_section(start: Event | None, section: str) -> Mapping[str, Any]:
    """A section of the recipe in a run.started event."""
    recipe = start.data.get("recipe") if start is not None else None
    found = recipe.get(section) if isinstance(recipe, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def as_number(value: Any) -> float | None:
    """`value` if it is a number, true and false aside."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
