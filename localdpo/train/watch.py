"""Feeds the metrics' history to the notices, and remembers what was raised."""

from __future__ import annotations

from pathlib import Path

from localdpo.model.backend import memory_limit
from localdpo.objective.notices import RULES_FOR, Record, RunFacts, new_notices
from localdpo.objective.notices.history import LOOK_BACK
from localdpo.records.events import effective, read_events
from localdpo.records.metrics import metrics_of
from localdpo.train.session import Session


class Watch:
    """The history of a run's metrics; each new record may raise notices, each once."""

    def __init__(self, session: Session) -> None:
        train = session.recipe.train
        self.facts = RunFacts(
            pairs_per_step=min(train.batch_size, len(session.train)),
            pairs_per_eval=len(session.eval_places),
            total_steps=session.plan.total,
            warmup_steps=session.plan.warmup,
            memory_limit_gb=memory_limit(session.backend.device) / 1e9,
        )
        self._data = session.recipe.loss.spec.data
        self._train: list[Record] = []
        self._evals: list[Record] = []
        self._raised: list[tuple[str, str]] = []

    def step(self, step: int, metrics: dict[str, float]) -> list[dict[str, str]]:
        """Fields of the notices that this step raises."""
        self._train.append((step, metrics))
        if len(self._train) > 2 * LOOK_BACK:
            # The rules read the first record and the newest ones; a long run does not keep them all.
            self._train[1:-LOOK_BACK] = []
        return self._new()

    def evaluation(self, step: int, metrics: dict[str, float]) -> list[dict[str, str]]:
        """Fields of the notices that this evaluation raises."""
        self._evals.append((step, metrics))
        return self._new()

    def replay(self, log: Path) -> None:
        """Take up the history that is in the event log, so that a resumed run raises nothing twice."""
        for event in effective(read_events(log)):
            if event.type == "step" and event.step is not None:
                self._train.append((event.step, metrics_of(event)))
            elif event.type == "eval" and event.step is not None:
                self._evals.append((event.step, metrics_of(event)))
            elif event.type == "notice" and "why" in event.data:
                self._raised.append((event.data["name"], event.data["level"]))

    def _new(self) -> list[dict[str, str]]:
        rules = RULES_FOR[self._data]
        found = new_notices(self._raised, self._train, self._evals, self.facts, rules)
        self._raised += [(notice.name, notice.level) for notice in found]
        return [notice.fields() for notice in found]
