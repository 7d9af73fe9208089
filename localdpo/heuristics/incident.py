"""The demo's: how well an answer triages an incident, by the facts beside its report.

They apply to rows with a column `facts` that holds exactly an incident's facts; other rows are not scored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Final

from localdpo.heuristics.base import Heuristic
from localdpo.incidents import rules, world
from localdpo.incidents.rules import Verdict
from localdpo.incidents.world import Facts

COLUMN: Final = "facts"
_NUMBERS: Final = ("percent", "minutes", "customers")
_WORDS: Final = {"service": world.SERVICES, "region": world.REGIONS, "symptom": tuple(world.SYMPTOMS)}


def incident_facts(row: Mapping[str, Any]) -> Facts | None:
    """The incident that a row's column `facts` describes, None when it describes none.

    A data set of another kind may have a column of that name too: values that no incident has mean that it is
    not ours, and are no error.
    """
    values = row.get(COLUMN)
    if not isinstance(values, Mapping):
        return None
    try:
        facts = Facts.from_dict(values)
    except ValueError:
        return None
    numbers = all(type(values[name]) is int for name in _NUMBERS)
    return facts if numbers and all(values[name] in known for name, known in _WORDS.items()) else None


@lru_cache(maxsize=4096)
def judged(answer: str, facts: Facts) -> Verdict:
    """`rules.judge`, once for each answer: several rows of a table ask for the same."""
    return rules.judge(answer, facts)


def _heuristic(name: str, holds: Callable[[Verdict], bool]) -> Heuristic:
    def score(prompt: str, answer: str, row: Mapping[str, Any]) -> float | None:
        facts = incident_facts(row)
        return None if facts is None else float(holds(judged(answer, facts)))

    return Heuristic(name, "higher", score)


HEURISTICS: Final = (
    _heuristic("in the format", lambda verdict: verdict.conforms),
    _heuristic("severity right", lambda verdict: verdict.severity),
    _heuristic("facts right", lambda verdict: verdict.faithful),
    _heuristic("all right", lambda verdict: verdict.exact),
)
