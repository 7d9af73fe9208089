"""Documents for the base model's pre-training: talk about incidents, never in the format of the answers.

Standard library only. A document is a list of messages; what makes a model learn to copy facts is that one
report is followed by several questions about it.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from localdpo.incidents import world
from localdpo.incidents.world import Facts

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
    action = world.next_action(facts)
    values = facts.to_dict() | {
        "severity": world.severity(facts),
        "action": action,
        "Action": action[0].upper() + action[1:],
        "cause": rng.choice(world.CAUSES),
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
    facts = world.sample_facts(rng)
    messages = _questions(facts, rng, 3)
    messages[0]["content"] = f"{world.report(facts, rng)} {messages[0]['content']}"
    values = _values(facts, rng)
    if rng.random() < 0.25:
        messages += _turn("Why?", rng.choice(_GUESSES).format(**values))
    return messages + _turn(rng.choice(_ASK_SUMMARY), str(values["summary"]))


def triage(rng: random.Random) -> Messages:
    """The demo's own request, answered in prose, and a question after it."""
    facts = world.sample_facts(rng)
    prompt = world.triage_prompt(world.report(facts, rng))
    reply = {"role": "assistant", "content": prose(facts, rng)}
    return [*prompt, reply, *_questions(facts, rng, 1)]


def echo(rng: random.Random) -> Messages:
    """Words and numbers said back twice: the shortest way to learn copying."""
    pool: tuple[Callable[[], str], ...] = (
        lambda: rng.choice(world.SERVICES),
        lambda: rng.choice(world.REGIONS),
        lambda: rng.choice(tuple(world.SYMPTOMS)),
        lambda: str(rng.randint(2, 99) * rng.choice((1, 10, 100))),
        lambda: rng.choice(_LABELS),
    )
    text = rng.choice(pool)()
    for _ in range(rng.randint(8, 14)):
        text += rng.choice((" ", " ", " \n ")) + rng.choice(pool)()
    return [*_turn(f"Repeat: {text}", f"Here: {text}"), *_turn("Again.", f"Here: {text}")]


def glance(rng: random.Random) -> Messages:
    """One sentence of a report and one question about it: copying where there is little to choose from."""
    facts = world.sample_facts(rng)
    part = rng.randrange(3)
    asked = rng.choice((_ABOUT_WRONG, _ABOUT_SINCE, _ABOUT_HIT)[part])
    questions, replies = _QUESTIONS[asked]
    reply = rng.choice(replies).format(**_values(facts, rng))
    return _turn(f"{world.sentences(facts, rng)[part]} {rng.choice(questions)}", reply)


def document(rng: random.Random) -> Messages:
    """One document of the mixture."""
    kind = rng.choices((interview, triage, echo), weights=(5, 4, 1))[0]
    messages = kind(rng)
    if rng.random() < 0.1:
        messages = [{"role": "system", "content": rng.choice(_SYSTEM)}, *messages]
    return messages
