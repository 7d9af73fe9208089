"""What an answer is worth, computed from the facts stored beside its report. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from localdpo.incidents import world
from localdpo.incidents.world import Facts

# The column of a row that holds an incident's facts.
COLUMN: Final = "facts"
KEY_FACTS = ("service", "symptom", "percent", "region", "minutes", "customers")
_FORMAT = re.compile(r"Severity: (SEV[1-4])\nSummary: (\S[^\n]*)\nNext: (\S[^\n]*)")
_NUMBER = re.compile(r"(?<!\w)(\d+)(?: ?(%|\w+))?")
_LEVEL = re.compile(r"\bSEV[0-9]+\b")
_UNITS = {
    "%": "percent",
    "percent": "percent",
    "min": "minutes",
    "minutes": "minutes",
    "customers": "customers",
}
_PHRASES = {
    "service": world.SERVICES,
    "region": world.REGIONS,
    "symptom": tuple(world.SYMPTOMS),
    "cause": world.CAUSES,
}
_NUMBERS = ("percent", "minutes", "customers")
_WORDS = {name: values for name, values in _PHRASES.items() if name != "cause"}
_ACTIONS = tuple(symptom.action for symptom in world.SYMPTOMS.values())


@dataclass(frozen=True)
class TriageAnswer:
    """The three parts of an answer in the fixed format."""

    severity: str
    summary: str
    action: str


@dataclass(frozen=True)
class IncidentVerdict:
    """What the rules found in one answer.

    conforms: the three lines and nothing else. severity, action: the right one. missing: key facts not in it.
    invented: "kind: value" of each mention that the facts do not hold.
    """

    conforms: bool
    severity: bool
    action: bool
    missing: tuple[str, ...]
    invented: tuple[str, ...]

    @property
    def faithful(self) -> bool:
        """No key fact missing, none invented."""
        return not self.missing and not self.invented

    @property
    def exact(self) -> bool:
        """Nothing at all to object to."""
        return self.conforms and self.severity and self.action and self.faithful

    @property
    def total(self) -> float:
        """0 outside the format, else 1 + severity + 0.5 for the action + facts, with

        facts = 1 less a quarter for each fact missing or invented, but at least 0. Highest 3.5.
        """
        if not self.conforms:
            return 0.0
        facts = max(0.0, 1.0 - 0.25 * (len(self.missing) + len(self.invented)))
        return 1.0 + self.severity + 0.5 * self.action + facts

    def beats(self, other: IncidentVerdict) -> bool:
        """Whether this answer is clearly the better one.

        One in the format beats one outside it. Of two in the format, one beats the other when it is better in
        some way and worse in none: severity, action, number of facts missing, number invented.
        """
        if not (self.conforms and other.conforms):
            return self.conforms and not other.conforms
        mine, theirs = self._virtues(), other._virtues()
        return mine != theirs and all(one >= two for one, two in zip(mine, theirs, strict=True))

    def _virtues(self) -> tuple[int, ...]:
        return (self.severity, self.action, -len(self.missing), -len(self.invented))


def incident_facts(row: Mapping[str, Any]) -> Facts | None:
    """The incident that a row's column `facts` describes, None when it describes none.

    A data set of another kind may have a column of that name too: values that no incident has mean that the
    row is not the demo's, and are no error.
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


def parse(text: str) -> TriageAnswer | None:
    """The parts of an answer, or None when it is not in the format. White space around it does not count."""
    match = _FORMAT.fullmatch(text.strip())
    return TriageAnswer(*match.groups()) if match else None


def mentions(text: str) -> set[tuple[str, str]]:
    """All (kind, value) that a text claims.

    Kinds are the key facts, "cause", and "number" for a number without a known unit.
    """
    claims = {(_UNITS.get(unit, "number"), str(int(digits))) for digits, unit in _NUMBER.findall(text)}
    for kind, phrases in _PHRASES.items():
        claims |= {(kind, phrase) for phrase in phrases if _holds(text, phrase)}
    return claims


@lru_cache(maxsize=4096)
def judge(text: str, facts: Facts) -> IncidentVerdict:
    """Judge an answer to the report of these facts; cached, since several rows of a table need it.

    Outside the format the whole text is searched for level, facts and action, so that an answer in free
    words is judged by what it says.
    """
    parsed = parse(text)
    levels = [parsed.severity] if parsed else sorted(set(_LEVEL.findall(text)))
    claimed = mentions(parsed.summary if parsed else text)
    true = {(name, str(value)) for name, value in facts.to_dict().items()}
    advised = parsed.action.rstrip(".") if parsed else text
    return IncidentVerdict(
        conforms=parsed is not None,
        severity=levels == [world.severity(facts)],
        action=_advises(advised, whole=parsed is not None) == [world.next_action(facts)],
        missing=tuple(name for name in KEY_FACTS if (name, str(getattr(facts, name))) not in claimed),
        invented=tuple(sorted(f"{kind}: {value}" for kind, value in claimed - true)),
    )


def _advises(text: str, *, whole: bool) -> list[str]:
    if whole:
        return [text]
    return [action for action in _ACTIONS if _holds(text.lower(), action)]


def _holds(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None
