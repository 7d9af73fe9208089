"""Format conformance: 1 when the answer matches a regular expression, else 0."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from localdpo.heuristics.base import Heuristic, Kind, OptionProblem, Options


def compiled(options: Options, name: str, pattern: str) -> re.Pattern[str]:
    """`pattern` in Python's words. Raises OptionProblem for the option `name` when it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise OptionProblem((name,), f"not a regular expression: {error}") from error


def build(name: str, options: Options) -> Heuristic:
    """Options: `pattern`; `whole` (true: the whole answer must match, white space around it aside)."""
    pattern = compiled(options, "pattern", options.text("pattern"))
    whole = options.flag("whole", True)

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
        found = pattern.fullmatch(answer.strip()) if whole else pattern.search(answer)
        return float(found is not None)

    return Heuristic(name, options.better("higher"), score)


KIND: Final = Kind("regex", build)
