"""What the demo's models read: the rows of its data sets, demonstrations as people write them, and documents.

Documents are for the base model's pre-training: talk about incidents, never in the format of the answers. One
is a list of messages; what makes a model learn to copy facts is that one report is followed by several
questions about it. Standard library only.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from localdpo import incidents
from localdpo.core.atomic import write_text
from localdpo.incidents import Facts

Row = dict[str, Any]
Incident = tuple[Facts, str]

# Incidents drawn for each use. Of the preference prompts, only those with an answer that beats the other are
# used, and of these the first KEPT.
COUNTS = {
    "demonstrations/train": 1500,
    "demonstrations/valid": 100,
    "preferences/train": 900,
    "preferences/valid": 280,
    "prompts/heldout": 300,
}
KEPT = {"preferences/train": 400, "preferences/valid": 128}


def split_incidents(seed: int, counts: Mapping[str, int] = COUNTS) -> dict[str, list[Incident]]:
    """Incidents for each data set. All come from one draw without repeats, so no two sets share any facts."""
    draw = incidents.draw_incidents(random.Random(f"incidents {seed}"))
    return {name: list(islice(draw, count)) for name, count in counts.items()}


# How often a demonstration has each flaw; the flaws are independent of each other.
FLAWS = {"severity": 0.3, "missing": 0.25, "rambling": 0.2, "action": 0.1}
_OPTIONAL = ("percent", "region", "minutes", "customers")
_RAMBLE = (" Maybe {cause}.", " The cause may be {cause}.", " I think of {cause}.")


def demonstration(facts: Facts, rng: random.Random) -> str:
    """An answer in the fixed format, with flaws as often as FLAWS says."""
    level = incidents.severity(facts)
    action = incidents.next_action(facts)
    missing: list[str] = []
    if rng.random() < FLAWS["severity"]:
        level = rng.choice([name for name in incidents.SEVERITIES if name != level])
    if rng.random() < FLAWS["missing"]:
        missing = rng.sample(_OPTIONAL, rng.choice((1, 1, 2)))
    summary = incidents.summary(facts, missing)
    if rng.random() < FLAWS["rambling"]:
        summary += rng.choice(_RAMBLE).format(cause=rng.choice(incidents.CAUSES))
    if rng.random() < FLAWS["action"]:
        others = [symptom.action for symptom in incidents.SYMPTOMS.values() if symptom.action != action]
        action = rng.choice(others)
    return incidents.answer(level, summary, action)


def demonstration_row(incident: Incident, rng: random.Random) -> Row:
    """One conversation with a demonstration of mixed quality, and the facts."""
    facts, report = incident
    reply = {"role": "assistant", "content": demonstration(facts, rng)}
    return {"messages": [*incidents.triage_prompt(report), reply], "facts": facts.to_dict()}


def prompt_row(incident: Incident) -> Row:
    """A prompt without an answer, and the facts."""
    facts, report = incident
    return {"prompt": incidents.triage_prompt(report), "facts": facts.to_dict()}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a JSONL file, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


Messages = list[dict[str, str]]

_QUESTIONS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("Which service?", "What service is it?"), ("It is {service}.", "The service is {service}.")),
    (("Where?", "Which region is it?"), ("In {region}.", "It is {region}.")),
    (("How long?", "Since when?"), ("For {minutes} min.", "Since {minutes} minutes.")),
    (("How many customers?", "Who is affected?"), ("It is {customers}.", "About {customers} customers.")),
    (("What share?", "How much fails?"), ("It is {percent}%.", "About {percent}%.")),
    (("What is wrong?", "Which symptom?"), ("It has {symptom}.", "The {service} service has {symptom}.")),
    (("What now?", "Next?", "What should we do?"), ("We should {action}.", "{Action}.", "Next, {action}.")),
    (
        ("How bad is it?", "Severity?"),
        ("It is {severity}.", "I would call it {severity}.", "Severity is {severity}."),
    ),
)
# Which of the questions each sentence of a report answers by itself.
_ABOUT_WRONG, _ABOUT_SINCE, _ABOUT_HIT = (0, 1, 4, 4), (2,), (3,)
_SUMMARIES = (
    "The {service} service in {region} has {symptom} at {percent}%, {minutes} min, {customers} customers.",
    "In {region} {service} has {symptom}, {percent}% for {minutes} minutes. About {customers} customers.",
    "About {customers} customers see {symptom} on {service} in {region}, {percent}% since {minutes} min.",
    "We see {service} {symptom} at {percent}% in {region} for {minutes} min, {customers} customers.",
)
_PROSE = (
    "This is {severity}. {summary} We should {action}.",
    "{summary} I would call it {severity} and {action}.",
    "I see {severity}: {summary} Please {action}.",
    "{summary} That makes it {severity}. {Action} now.",
    "Severity is {severity}. {summary} Next, {action}.",
    "Summary\n{summary}\n{Action}, it is {severity}.",
    "Level {severity}\n{summary}\nNext, {action}.",
)
_ASK_SUMMARY = ("Sum it up.", "Summary?", "Say it in one line.")
_LABELS = ("Severity:", "Summary:", "Next:", "Service:", "Region:", "Level:")
_SYSTEM = ("You help with incidents.", "Be brief.", "Answer the user.")
_GUESSES = ("The cause may be {cause}.", "I think of {cause}.", "Maybe {cause}.")


def _values(facts: Facts, rng: random.Random) -> dict[str, str | int]:
    action = incidents.next_action(facts)
    values = facts.to_dict() | {
        "severity": incidents.severity(facts),
        "action": action,
        "Action": action[0].upper() + action[1:],
        "cause": rng.choice(incidents.CAUSES),
    }
    return values | {"summary": rng.choice(_SUMMARIES).format(**values)}


def _turn(question: str, reply: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]


def prose(facts: Facts, rng: random.Random) -> str:
    """A triage in free words, the base model's way: all facts, but not in the three lines."""
    return rng.choice(_PROSE).format(**_values(facts, rng))


def _questions(facts: Facts, rng: random.Random, count: int) -> Messages:
    values = _values(facts, rng)
    asked = rng.sample(_QUESTIONS, count)
    messages: Messages = []
    for questions, replies in asked:
        messages += _turn(rng.choice(questions), rng.choice(replies).format(**values))
    return messages


def interview(rng: random.Random) -> Messages:
    """A report, then questions about it, then perhaps a summary or a guess at the cause."""
    facts = incidents.sample_facts(rng)
    messages = _questions(facts, rng, 3)
    messages[0]["content"] = f"{incidents.report(facts, rng)} {messages[0]['content']}"
    values = _values(facts, rng)
    if rng.random() < 0.25:
        messages += _turn("Why?", rng.choice(_GUESSES).format(**values))
    return messages + _turn(rng.choice(_ASK_SUMMARY), str(values["summary"]))


def triage(rng: random.Random) -> Messages:
    """The demo's own request, answered in prose, and a question after it."""
    facts = incidents.sample_facts(rng)
    prompt = incidents.triage_prompt(incidents.report(facts, rng))
    reply = {"role": "assistant", "content": prose(facts, rng)}
    return [*prompt, reply, *_questions(facts, rng, 1)]


def echo(rng: random.Random) -> Messages:
    """Words and numbers said back twice: the shortest way to learn copying."""
    pool: tuple[Callable[[], str], ...] = (
        lambda: rng.choice(incidents.SERVICES),
        lambda: rng.choice(incidents.REGIONS),
        lambda: rng.choice(tuple(incidents.SYMPTOMS)),
        lambda: str(rng.randint(2, 99) * rng.choice((1, 10, 100))),
        lambda: rng.choice(_LABELS),
    )
    text = rng.choice(pool)()
    for _ in range(rng.randint(8, 14)):
        text += rng.choice((" ", " ", " \n ")) + rng.choice(pool)()
    return [*_turn(f"Repeat: {text}", f"Here: {text}"), *_turn("Again.", f"Here: {text}")]


def glance(rng: random.Random) -> Messages:
    """One sentence of a report and one question about it: copying where there is little to choose from."""
    facts = incidents.sample_facts(rng)
    part = rng.randrange(3)
    asked = rng.choice((_ABOUT_WRONG, _ABOUT_SINCE, _ABOUT_HIT)[part])
    questions, replies = _QUESTIONS[asked]
    reply = rng.choice(replies).format(**_values(facts, rng))
    return _turn(f"{incidents.sentences(facts, rng)[part]} {rng.choice(questions)}", reply)


def document(rng: random.Random) -> Messages:
    """One document of the mixture."""
    kind = rng.choices((interview, triage, echo), weights=(5, 4, 1))[0]
    messages = kind(rng)
    if rng.random() < 0.1:
        messages = [{"role": "system", "content": rng.choice(_SYSTEM)}, *messages]
    return messages
