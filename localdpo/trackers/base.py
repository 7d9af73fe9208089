"""What every tracker is shown of a run, and what it has to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from localdpo.records.rundir import Ending

# The project (of MLflow: the experiment) where the tracker's own environment variable names none.
PROJECT: Final = "localdpo"
SAMPLE_COLUMNS: Final = ("prompt", "reference", "policy")
EVAL: Final = "eval_"


@dataclass(frozen=True)
class TrackedRun:
    """A run as trackers know it.

    Attributes:
        id: unlike that of any other run, and the same whenever this one is shown.
        recipe: every option, as the run.started event has it.
        started: Unix time in seconds.
    """

    id: str
    name: str
    folder: Path
    recipe: Mapping[str, Any]
    started: float


@dataclass
class Row:
    """What a run measured at one step.

    Attributes:
        time: Unix time in seconds.
        metrics: by TRL's names, those of an evaluation with `eval_` in front.
        samples: (prompt, answer of the reference, answer of the policy) of each watched prompt.
    """

    step: int
    time: float
    metrics: dict[str, float] = field(default_factory=dict)
    samples: list[tuple[str, str, str]] = field(default_factory=list)


class Tracker(Protocol):
    """One run in one tracker, open to be written. Opening, logging and finishing may raise what they like.

    Attributes:
        place: where a person finds the run; no secret is in it.
        last_step: the highest step that the tracker has of it, -1 for none.
    """

    @property
    def place(self) -> str: ...

    @property
    def last_step(self) -> int: ...

    def log(self, rows: Sequence[Row]) -> None:
        """Add rows of steps above `last_step`, in order."""

    def finish(self, ending: Ending) -> None:
        """Write what is left; the run has ended in this way."""


def charted(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics under the names that transformers' callbacks give them: `train/loss`, `eval/loss`."""
    return {
        f"eval/{name.removeprefix(EVAL)}" if name.startswith(EVAL) else f"train/{name}": value
        for name, value in metrics.items()
    }
