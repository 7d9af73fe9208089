"""What a person watching a run should be told, as pure functions of the metrics' history.

Standard library only. A record is (step, metrics) with the metrics' names as in the event log; a value that
was not finite is None there. Each rule looks at the newest records and says something or nothing. `notices`
gives what a whole history raises, `new_notices` what its newest record adds; replaying the second gives the
first.

Thresholds without a source beside them are choices of this project, made to stay silent on healthy runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from localdpo.objective.notices.divergence import displacement, kl_spike, not_finite
from localdpo.objective.notices.history import SEVERITY, History, Notice, Record, RunFacts
from localdpo.objective.notices.learning import accuracy_stuck, labels_swapped, memorised, responses_growing

__all__ = ["PAIR_RULES", "RULES", "History", "Notice", "Record", "RunFacts", "new_notices", "notices"]

RULES: tuple[Callable[[History], Notice | None], ...] = (
    not_finite,
    kl_spike,
    labels_swapped,
    accuracy_stuck,
    displacement,
    memorised,
    responses_growing,
)
# About chosen against rejected responses of the same prompt.
PAIR_RULES = frozenset({labels_swapped, accuracy_stuck, displacement, memorised})


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
    raised: Collection[tuple[str, str]], train: Sequence[Record], evals: Sequence[Record], facts: RunFacts
) -> list[Notice]:
    """What the newest record adds; call it after each one. `raised`: (name, level) of those given so far.

    A name is raised again only at a higher level than before.
    """
    return _unraised(History(facts, train, evals), raised)


def _unraised(history: History, raised: Collection[tuple[str, str]]) -> list[Notice]:
    highest: dict[str, int] = {}
    for name, level in raised:
        highest[name] = max(highest.get(name, -1), SEVERITY[level])
    rules = [rule for rule in RULES if history.facts.paired or rule not in PAIR_RULES]
    fired = [notice for rule in rules if (notice := rule(history)) is not None]
    return [n for n in fired if SEVERITY[n.level] > highest.get(n.name, -1)]
