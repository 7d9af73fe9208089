"""The rows of the demo's data sets, and demonstrations as people write them. Standard library only."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from localdpo.core.atomic import write_text
from localdpo.incidents import world
from localdpo.incidents.world import Facts

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
    draw = world.incidents(random.Random(f"incidents {seed}"))
    return {name: list(islice(draw, count)) for name, count in counts.items()}


# How often a demonstration has each flaw; the flaws are independent of each other.
FLAWS = {"severity": 0.3, "missing": 0.25, "rambling": 0.2, "action": 0.1}
_OPTIONAL = ("percent", "region", "minutes", "customers")
_RAMBLE = (" Maybe {cause}.", " The cause may be {cause}.", " I think of {cause}.")


def demonstration(facts: Facts, rng: random.Random) -> str:
    """An answer in the fixed format, with flaws as often as FLAWS says."""
    level = world.severity(facts)
    action = world.next_action(facts)
    missing: list[str] = []
    if rng.random() < FLAWS["severity"]:
        level = rng.choice([name for name in world.SEVERITIES if name != level])
    if rng.random() < FLAWS["missing"]:
        missing = rng.sample(_OPTIONAL, rng.choice((1, 1, 2)))
    summary = world.summary(facts, missing)
    if rng.random() < FLAWS["rambling"]:
        summary += rng.choice(_RAMBLE).format(cause=rng.choice(world.CAUSES))
    if rng.random() < FLAWS["action"]:
        others = [symptom.action for symptom in world.SYMPTOMS.values() if symptom.action != action]
        action = rng.choice(others)
    return world.answer(level, summary, action)


def demonstration_row(incident: Incident, rng: random.Random) -> Row:
    """One conversation with a demonstration of mixed quality, and the facts."""
    facts, report = incident
    reply = {"role": "assistant", "content": demonstration(facts, rng)}
    return {"messages": [*world.triage_prompt(report), reply], "facts": facts.to_dict()}


def prompt_row(incident: Incident) -> Row:
    """A prompt without an answer, and the facts."""
    facts, report = incident
    return {"prompt": world.triage_prompt(report), "facts": facts.to_dict()}


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write a JSONL file, completely or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]
