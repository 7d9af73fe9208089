"""The demo's task: a small world of service incidents, and what an answer to a report of one is worth.

First the facts, the reports that tell them, and the one right answer; then the rules, which judge an answer
by the facts stored beside its report. Standard library only. What is drawn is a pure function of the facts
and of a `random.Random`.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final


@dataclass(frozen=True)
class Symptom:
    """One way a service goes wrong: its name in answers, its wordings in reports, and what to do next."""

    name: str
    wordings: tuple[str, ...]
    action: str


@dataclass(frozen=True)
class Facts:
    """The facts of one incident: what a report tells, and all that an answer may say.

    percent: share of requests that are hit, 2-95. minutes: duration, 5-95. customers: affected, 10-9900.
    """

    service: str
    region: str
    symptom: str
    percent: int
    minutes: int
    customers: int

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Facts:
        """The inverse of `to_dict`. Raises ValueError when a field is missing or one is unknown."""
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            raise ValueError(f"facts need exactly {sorted(names)}, got {sorted(values)}")
        return cls(**{name: values[name] for name in names})

    def to_dict(self) -> dict[str, str | int]:
        """The facts as a JSON-ready mapping."""
        return dataclasses.asdict(self)


SERVICES = (
    "checkout", "payments", "search", "login", "billing", "inventory", "email", "reports",
    "uploads", "chat", "maps", "booking", "invoices", "catalog", "orders", "profile",
)  # fmt: skip
REGIONS = ("Dublin", "Oslo", "Tokyo", "Sydney", "Ohio", "Oregon", "Mumbai", "Seoul")
PEOPLE = ("Ana", "Ravi", "Mei", "Tom", "Lena", "Omar", "Ines", "Jon")
SYMPTOMS = {
    symptom.name: symptom
    for symptom in (
        Symptom("errors", ("of requests fail", "of calls return errors"), "roll back the last release"),
        Symptom("timeouts", ("of requests time out", "of calls never finish"), "add more workers"),
        Symptom("slow pages", ("of pages load slowly", "of pages are slow"), "grow the cache"),
        Symptom("bad sessions", ("of sessions are rejected", "of sessions drop"), "rotate the signing key"),
        Symptom("stale data", ("of reads are stale", "of reads show old data"), "restart the replica"),
        Symptom("lost messages", ("of messages are lost", "of messages vanish"), "replay the queue"),
        Symptom("double writes", ("of writes run twice", "of writes are doubled"), "pause the writers"),
        Symptom("corrupt files", ("of files are corrupt", "of files do not open"), "restore the backup"),
    )
}
CAUSES = (
    "a bad deploy", "a full disk", "the new firewall", "a network fault", "an old certificate",
    "a traffic spike", "the database move", "a vendor outage",
)  # fmt: skip
SEVERITIES = ("SEV1", "SEV2", "SEV3", "SEV4")
INSTRUCTION = "Triage this report."

_ABOUT_SYMPTOM: tuple[str, ...] = (
    "Now {percent}% {wording} on {service} in {region}.",
    "Alarm on {service} in {region}: {percent}% {wording}.",
    "In {region}, {percent}% {wording} on {service}.",
    "For {region}, {service}: {percent}% {wording}.",
    "Problem with {service}, {region}. About {percent}% {wording}.",
)
_ABOUT_TIME: tuple[str, ...] = (
    "It began {minutes} minutes ago.",
    "Going on for {minutes} min.",
    "We have seen this for {minutes} minutes.",
    "Duration so far: {minutes} min.",
)
_ABOUT_CUSTOMERS: tuple[str, ...] = (
    "This affects {customers} customers.",
    "It hits {customers} customers.",
    "Customers affected: {customers}.",
    "So far {customers} customers noticed.",
)
_ASIDES: tuple[str, ...] = (
    "{person} is on call.",
    "{person} is looking.",
    "Paged {person}.",
    "No alert came first.",
    "Logs look normal.",
)


def sample_facts(rng: random.Random) -> Facts:
    """Facts drawn so that every band of the severity rule is equally common."""
    percent = rng.choice((rng.randint(2, 9), rng.randint(10, 39), rng.randint(40, 95)))
    customers = rng.randint(10, 99) * rng.choice((1, 10, 100))
    return Facts(
        service=rng.choice(SERVICES),
        region=rng.choice(REGIONS),
        symptom=rng.choice(tuple(SYMPTOMS)),
        percent=percent,
        minutes=rng.randint(5, 95),
        customers=customers,
    )


def severity(facts: Facts) -> str:
    """SEV1 (worst) to SEV4: one point each for percent >= 10 and >= 40, customers >= 100 and >= 1000."""
    points = (facts.percent >= 10) + (facts.percent >= 40)
    points += (facts.customers >= 100) + (facts.customers >= 1000)
    return SEVERITIES[3 - min(points, 3)]


def next_action(facts: Facts) -> str:
    """What to do next; the symptom alone decides it."""
    return SYMPTOMS[facts.symptom].action


def sentences(facts: Facts, rng: random.Random) -> list[str]:
    """The three sentences of a report in one of many wordings: what is wrong, since when, who is hit."""
    values = facts.to_dict() | {"wording": rng.choice(SYMPTOMS[facts.symptom].wordings)}
    kinds = (_ABOUT_SYMPTOM, _ABOUT_TIME, _ABOUT_CUSTOMERS)
    return [rng.choice(wordings).format(**values) for wordings in kinds]


def report(facts: Facts, rng: random.Random) -> str:
    """A report that tells all the facts in any order, sometimes with an aside that does not matter."""
    parts = sentences(facts, rng)
    if rng.random() < 0.5:
        parts.append(rng.choice(_ASIDES).format(person=rng.choice(PEOPLE)))
    rng.shuffle(parts)
    return " ".join(parts)


def answer(severity_name: str, summary: str, action: str) -> str:
    """The fixed format: three lines."""
    return f"Severity: {severity_name}\nSummary: {summary}\nNext: {action}."


def summary(facts: Facts, leave_out: Collection[str] = ()) -> str:
    """The sentence of the right answer: every fact once, but those named in `leave_out`.

    Service and symptom cannot be left out.
    """
    clauses = {
        "percent": f" at {facts.percent}%",
        "region": f" in {facts.region}",
        "minutes": f" for {facts.minutes} min",
        "customers": f", {facts.customers} customers",
    }
    kept = "".join(clause for name, clause in clauses.items() if name not in leave_out)
    return f"{facts.service} {facts.symptom}{kept}."


def gold_answer(facts: Facts) -> str:
    """The one right answer: right severity, all facts and nothing else, right action."""
    return answer(severity(facts), summary(facts), next_action(facts))


def triage_prompt(report_text: str) -> list[dict[str, str]]:
    """The prompt of the demo as messages: one user turn."""
    return [{"role": "user", "content": f"{INSTRUCTION}\n{report_text}"}]


def draw_incidents(rng: random.Random) -> Iterator[tuple[Facts, str]]:
    """Endless (facts, report); no facts come twice."""
    seen: set[Facts] = set()
    while True:
        facts = sample_facts(rng)
        if facts in seen:
            continue
        seen.add(facts)
        yield facts, report(facts, rng)


# --- the rules ----------------------------------------------------------------------------------------

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
    "service": SERVICES,
    "region": REGIONS,
    "symptom": tuple(SYMPTOMS),
    "cause": CAUSES,
}
_NUMBERS = ("percent", "minutes", "customers")
_WORDS = {name: values for name, values in _PHRASES.items() if name != "cause"}
_ACTIONS = tuple(symptom.action for symptom in SYMPTOMS.values())


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


def parse(text: str) -> re.Match[str] | None:
    """Severity, summary and action of an answer, None when it is not in the format.

    White space around it does not count.
    """
    return _FORMAT.fullmatch(text.strip())


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
    if parsed:
        levels, said, advised = [parsed[1]], parsed[2], [parsed[3].rstrip(".")]
    else:
        levels, said = sorted(set(_LEVEL.findall(text))), text
        advised = [action for action in _ACTIONS if _holds(text.lower(), action)]
    claimed = mentions(said)
    true = {(name, str(value)) for name, value in facts.to_dict().items()}
    return IncidentVerdict(
        conforms=parsed is not None,
        severity=levels == [severity(facts)],
        action=advised == [next_action(facts)],
        missing=tuple(name for name in KEY_FACTS if (name, str(getattr(facts, name))) not in claimed),
        invented=tuple(sorted(f"{kind}: {value}" for kind, value in claimed - true)),
    )


def _holds(text: str, phrase: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", text) is not None
