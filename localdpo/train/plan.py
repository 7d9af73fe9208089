"""How many steps a run has, and the learning rate of each: pure arithmetic on the recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass

from localdpo.data.batches import steps_per_epoch
from localdpo.recipe.schema import TrainSection


@dataclass(frozen=True)
class Plan:
    """The steps of a run.

    Attributes:
        rows: rows that an epoch takes.
        total: steps in all.
        per_epoch: steps of one pass over the rows.
        warmup: steps over which the learning rate rises.
    """

    rows: int
    total: int
    per_epoch: int
    warmup: int
    peak: float
    schedule: str

    def learning_rate(self, step: int) -> float:
        """The learning rate of the 0-based `step`.

        Warm-up is linear and reaches the peak at step `warmup`; it starts above zero, so that the
        first step is not lost. Decay reaches 0 one step after the last.
        """
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        if self.schedule == "linear":
            return self.peak * (1.0 - progress)
        if self.schedule == "cosine":
            return self.peak * 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.peak

    def epoch(self, step: int) -> float:
        """Passes over the data after `step` steps."""
        return step / self.per_epoch


def make_plan(train: TrainSection, rows: int) -> Plan:
    """The plan of a run whose epochs take `rows` rows. A warm-up longer than the run is cut to the run."""
    per_epoch = steps_per_epoch(rows, train.batch_size)
    total = train.epochs * per_epoch
    if train.max_steps is not None:
        total = min(total, train.max_steps)
    warmup = round(train.warmup * total) if isinstance(train.warmup, float) else train.warmup
    return Plan(rows, total, per_epoch, min(warmup, total - 1), train.learning_rate, train.schedule)
