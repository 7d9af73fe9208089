"""What the rules read and what they return. Standard library only."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Record = tuple[int, Mapping[str, float | None]]
Level = Literal["info", "warning", "critical"]
SEVERITY: Mapping[str, int] = {"info": 0, "warning": 1, "critical": 2}

# How many records back a rule looks for figures that are not in every record (kl).
LOOK_BACK = 1000


@dataclass(frozen=True)
class RunFacts:
    """What the history alone does not tell: counts from the recipe and the data, and the machine's memory."""

    pairs_per_step: int
    pairs_per_eval: int
    total_steps: int
    warmup_steps: int = 0
    memory_limit_gb: float | None = None


@dataclass(frozen=True)
class Notice:
    """One thing to tell: what was seen (`message`), what it means (`why`) and what helps (`try_`)."""

    name: str
    level: Level
    step: int
    message: str
    why: str
    try_: str

    def fields(self) -> dict[str, str]:
        """The fields of a `notice` event; the step is the event's own."""
        return {
            "level": self.level,
            "name": self.name,
            "message": self.message,
            "why": self.why,
            "try": self.try_,
        }


@dataclass(frozen=True)
class History:
    """The records of a run up to now, oldest first."""

    facts: RunFacts
    train: Sequence[Record]
    evals: Sequence[Record]


def values_of(records: Sequence[Record], name: str, count: int) -> list[float]:
    """The last `count` finite values of `name`, oldest first; fewer where there are fewer."""
    values: list[float] = []
    for _, metrics in reversed(records[-LOOK_BACK:] if len(records) > LOOK_BACK else records):
        value = metrics.get(name)
        if value is not None and math.isfinite(value):
            values.append(value)
            if len(values) == count:
                break
    return values[::-1]


def last_step(history: History) -> int:
    return max((records[-1][0] for records in (history.train, history.evals) if records), default=0)


def rises(values: Sequence[float]) -> bool:
    """Whether the newer half of a window lies above the older half, by their means."""
    half = len(values) // 2
    return statistics.fmean(values[half:]) > statistics.fmean(values[:half])
