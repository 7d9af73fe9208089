"""The pairs of lowest margin at an evaluation, token by token: `runs/NAME/pairs/step-000120.json`.

    {"step": 120, "beta": 0.1, "pairs": [{"row": 7, "source": "demo:preferences/valid", "prompt": "...",
      "margin": -0.8, "chosen": {"text": "...", "reward": 0.1, "tokens": [["Sev", 0.02], ...]},
      "rejected": {...}}, ...]}

A token's number is its reward; one whose text is empty is a part of the character that a later one completes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from localdpo.core.atomic import write_bytes
from localdpo.core.errors import UserError
from localdpo.records.events import finite
from localdpo.records.log import as_record, read_sealed, seal
from localdpo.records.rundir import RunDir


@dataclass(frozen=True)
class RewardedResponse:
    """A response: its text, its reward, and (text, reward) of each token. Rewards: beta times nats; NaN where
    they were not finite."""

    text: str
    reward: float
    tokens: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class WorstPair:
    """A pair; `row` counts from 1 in `source`, `margin` is the reward of chosen minus that of rejected."""

    row: int
    source: str
    prompt: str
    margin: float
    chosen: RewardedResponse
    rejected: RewardedResponse

    @property
    def key(self) -> str:
        """Tells pairs apart: the recipe may list several data sets."""
        return f"{self.row} {self.source}"


@dataclass(frozen=True)
class PairsRecord:
    """The pairs of lowest margin at `step`, the lowest first."""

    step: int
    beta: float
    pairs: tuple[WorstPair, ...]


_PARSE: Final = partial(as_record, PairsRecord)


def write_pairs(run: RunDir, record: PairsRecord) -> str:
    """Write the file of a step; its path, relative to the run's folder."""
    path = run.pairs / f"step-{record.step:06d}.json"
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, seal(json.dumps(finite(asdict(record)), ensure_ascii=False)))
    return str(path.relative_to(run.path))


def read_pairs(run: RunDir, path: str) -> PairsRecord:
    """The pairs in the file at `path`, relative to the run's folder, as its event names it.

    Raises UserError if it cannot be read, is not such a file, or leads out of the run's folder.
    """
    relative = Path(path)
    if relative.is_absolute() or ".." in relative.parts:
        raise UserError(f"{run.path}: the log names {path}, which is not in the run's folder")
    return read_sealed(run.path / relative, _PARSE, "a file of pairs that training wrote")
