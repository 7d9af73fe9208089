"""A small world of service incidents: facts, the reports that tell them, and the one right answer.

Standard library only. Everything is a pure function of the facts and of a `random.Random`.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any


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


def incidents(rng: random.Random) -> Iterator[tuple[Facts, str]]:
    """Endless (facts, report); no facts come twice."""
    seen: set[Facts] = set()
    while True:
        facts = sample_facts(rng)
        if facts in seen:
            continue
        seen.add(facts)
        yield facts, report(facts, rng)
