"""Demonstrations as people write them: most right, some careless. Standard library only."""

from __future__ import annotations

import random
from dataclasses import dataclass

from localdpo.incidents import world
from localdpo.incidents.world import Facts


@dataclass(frozen=True)
class Carelessness:
    """How often a demonstration has each flaw; the flaws are independent of each other."""

    severity: float = 0.3
    missing: float = 0.25
    rambling: float = 0.2
    action: float = 0.1


_OPTIONAL = ("percent", "region", "minutes", "customers")
_RAMBLE = (" Maybe {cause}.", " The cause may be {cause}.", " I think of {cause}.")


def demonstration(facts: Facts, rng: random.Random, care: Carelessness | None = None) -> str:
    """An answer in the fixed format, with flaws as often as `care` says."""
    care = care or Carelessness()
    level = world.severity(facts)
    action = world.next_action(facts)
    left_out: list[str] = []
    if rng.random() < care.severity:
        level = rng.choice([name for name in world.SEVERITIES if name != level])
    if rng.random() < care.missing:
        left_out = rng.sample(_OPTIONAL, rng.choice((1, 1, 2)))
    summary = world.summary(facts, left_out)
    if rng.random() < care.rambling:
        summary += rng.choice(_RAMBLE).format(cause=rng.choice(world.CAUSES))
    if rng.random() < care.action:
        others = [symptom.action for symptom in world.SYMPTOMS.values() if symptom.action != action]
        action = rng.choice(others)
    return world.answer(level, summary, action)
