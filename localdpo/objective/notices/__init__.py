"""What a person watching a run should be told, as pure functions of the metrics' history.

Standard library only. A record is (step, metrics) with the metrics' names as in the event log; a value that
was not finite is None there. Each rule looks at the newest records and says something or nothing. `notices`
gives what a whole history raises, `new_notices` what its newest record adds; replaying the second gives the
first.

Thresholds without a source beside them are choices of this project, made to stay silent on healthy runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from localdpo.objective.notices.divergence import displacement, kl_spike, not_finite
from localdpo.objective.notices.history import SEVERITY, History, Notice, Record, RunFacts
from localdpo.objective.notices.learning import accuracy_stuck, labels_swapped, memorised, responses_growing
from localdpo.objective.notices.machine import memory_nearly_full, slower
from localdpo.objective.registry import DataKind

__all__ = [
    "MACHINE_RULES",
    "RULES",
    "RULES_FOR",
    "History",
    "Notice",
    "Record",
    "RunFacts",
    "new_notices",
    "notices",
]

Rule = Callable[[History], Notice | None]
# Rules that hold for any training, pairs or not.
MACHINE_RULES: tuple[Rule, ...] = (memory_nearly_full, slower)
RULES: tuple[Rule, ...] = (
    *MACHINE_RULES,
    not_finite,
    kl_spike,
    labels_swapped,
    accuracy_stuck,
    displacement,
    memorised,
    responses_growing,
)
# By the kind of rows that a loss trains on. What a pair's two responses do to each other, or whether one of
# them is ranked right, cannot be said of single responses.
RULES_FOR: Mapping[DataKind, tuple[Rule, ...]] = {
    "pairs": RULES,
    "unpaired": (*MACHINE_RULES, not_finite, kl_spike, responses_growing),
    "demonstrations": MACHINE_RULES,
}


def notices(train: Sequence[Record], evals: Sequence[Record], facts: RunFacts) -> list[Notice]:
    """Everything that a whole history raises, in order; each name once, and again only at a higher level."""
    train_seen: list[Record] = []
    evals_seen: list[Record] = []
    history = History(facts, train_seen, evals_seen)
    found: list[Notice] = []
    # An evaluation at step s follows the training record of step s.
    arrivals = sorted([(r[0], 0, r) for r in train] + [(r[0], 1, r) for r in evals], key=lambda a: a[:2])
    for _, is_eval, record in arrivals:
        (evals_seen if is_eval else train_seen).append(record)
        found += _unraised(history, [(n.name, n.level) for n in found])
    return found


def new_notices(
    raised: Collection[tuple[str, str]],
    train: Sequence[Record],
    evals: Sequence[Record],
    facts: RunFacts,
    rules: Sequence[Rule] = RULES,
) -> list[Notice]:
    """What the newest record adds; call it after each one. `raised`: (name, level) of those given so far.

    A name is raised again only at a higher level than before.
    """
    return _unraised(History(facts, train, evals), raised, rules)


def _unraised(
    history: History, raised: Collection[tuple[str, str]], rules: Sequence[Rule] = RULES
) -> list[Notice]:
    highest: dict[str, int] = {}
    for name, level in raised:
        highest[name] = max(highest.get(name, -1), SEVERITY[level])
    fired = [notice for rule in rules if (notice := rule(history)) is not None]
    return [n for n in fired if SEVERITY[n.level] > highest.get(n.name, -1)]
