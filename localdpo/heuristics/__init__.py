"""What can be told of an answer without a judge: one file a kind of check, and one table of the kinds.

A heuristic looks at a prompt, an answer and the facts of the row and gives a number, or None where it does
not apply: an answer that is not scored is never counted as 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from localdpo.heuristics import incident, json_schema, label, length, refusal, regex, repetition, template
from localdpo.heuristics.base import Direction, Heuristic, Kind

__all__ = ["GENERAL", "HEURISTICS", "STANDARD", "Direction", "Heuristic", "Kind"]

# The kinds that a file of checks may name. A new kind is one file and one entry.
HEURISTICS: Final[Mapping[str, Kind]] = {
    kind.name: kind
    for kind in (
        regex.KIND,
        json_schema.KIND,
        template.KIND,
        label.KIND,
        length.KIND,
        repetition.KIND,
        refusal.KIND,
    )
}

# What is looked at without such a file, in anybody's answers.
GENERAL: Final[tuple[Heuristic, ...]] = (
    length.empty(),
    length.standard(),
    repetition.standard(),
    refusal.standard(),
)
# And in those to the demo's prompts, whose rows hold an incident's facts.
STANDARD: Final[tuple[Heuristic, ...]] = (*incident.HEURISTICS, *GENERAL)
