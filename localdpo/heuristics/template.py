"""Format conformance to a template with holes, for those who would rather not write a regular expression."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from localdpo.heuristics.base import Heuristic, Kind, OptionProblem, Options

_HOLE = re.compile(r"\{\{|\}\}|\{(?P<name>\w+)\}|[{}]")


def template_pattern(template: str) -> re.Pattern[str]:
    """The regular expression of a template: `{name}` is any text on one line, at least one character.

    A hole starts with a character that is no white space; `{{` and `}}` stand for braces. Raises ValueError
    for a brace that belongs to nothing, and for a template without holes.
    """
    parts, place, holes = [], 0, 0
    for match in _HOLE.finditer(template):
        parts.append(re.escape(template[place : match.start()]))
        place = match.end()
        if match["name"] is not None:
            parts.append(r"\S[^\n]*")
            holes += 1
        elif len(match[0]) == 2:
            parts.append(re.escape(match[0][0]))
        else:
            raise ValueError(
                f"a lone {match[0]} at character {match.start() + 1}; write {match[0] * 2} for it"
            )
    if not holes:
        raise ValueError("no hole in it, such as {summary}")
    return re.compile("".join([*parts, re.escape(template[place:])]))


def build(name: str, options: Options) -> Heuristic:
    """Options: `template`. White space around template and answer does not count."""
    try:
        pattern = template_pattern(options.text("template").strip())
    except ValueError as error:
        raise OptionProblem(("template",), str(error)) from error

    def score(prompt: str, answer: str, facts: Mapping[str, Any]) -> float:
        return float(pattern.fullmatch(answer.strip()) is not None)

    return Heuristic(name, options.better("higher"), score)


KIND: Final = Kind("template", build)
