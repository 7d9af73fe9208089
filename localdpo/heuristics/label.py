"""Label match: whether the answer names the label that a column of the row holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from localdpo.heuristics.base import Heuristic, Kind, OptionProblem, Options
from localdpo.heuristics.regex import compiled


def column_value(facts: Mapping[str, Any], column: str) -> Any:
    """The value of a column, or of a field inside it (`facts.region`); None where there is none."""
    value: Any = facts
    for name in column.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def build(name: str, options: Options) -> Heuristic:
    """Options: `column`, and `pattern`: its group 1 (else all it matches) is the label in the answer.

    Without a pattern the whole answer is the label. Case and white space around do not count. A row without
    the column is not scored; an answer that the pattern is not found in scores 0.
    """
    column, text = options.text("column"), options.optional("pattern")
    pattern = None if text is None else compiled(options, "pattern", text)
    if pattern is not None and pattern.groups > 1:
        raise OptionProblem(("pattern",), "expected at most one group; write (?:...) for the others")

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float | None:
        wanted = column_value(facts, column)
        if wanted is None:
            return None
        found: str | None = answer
        if pattern is not None:
            match = pattern.search(answer)
            found = match[pattern.groups] if match else None
        return float(found is not None and _plain(found) == _plain(str(wanted)))

    return Heuristic(name, options.better("higher"), score)


def _plain(text: str) -> str:
    return text.strip().casefold()


KIND: Final = Kind("label", build)
