"""The pairs of lowest margin at an evaluation, token by token: `runs/NAME/pairs/step-000120.json`.

    {"step": 120, "beta": 0.1, "pairs": [{"row": 7, "source": "demo:preferences/valid", "prompt": "...",
      "margin": -0.8, "chosen": {"text": "...", "reward": 0.1, "tokens": [["Sev", 0.02], ...]},
      "rejected": {...}}, ...]}

A token's number is its reward; one whose text is empty is a part of the character that a later one completes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from localdpo.core.atomic import write_bytes
from localdpo.core.errors import UserError
from localdpo.records.events import finite
from localdpo.records.log import read_sealed, seal
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
    return read_sealed(run.path / relative, _pairs, "a file of pairs that training wrote")


def _pairs(content: Mapping[str, Any]) -> PairsRecord:
    pairs = tuple(map(_pair, content["pairs"]))
    return PairsRecord(int(content["step"]), float(content["beta"]), pairs)


def _pair(entry: Mapping[str, Any]) -> WorstPair:
    return WorstPair(
        row=int(entry["row"]),
        source=str(entry["source"]),
        prompt=str(entry["prompt"]),
        margin=_number(entry["margin"]),
        chosen=_response(entry["chosen"]),
        rejected=_response(entry["rejected"]),
    )


def _response(entry: Mapping[str, Any]) -> RewardedResponse:
    tokens = tuple((str(text), _number(reward)) for text, reward in entry["tokens"])
    return RewardedResponse(str(entry["text"]), _number(entry["reward"]), tokens)


def _number(value: Any) -> float:
    """What was not finite is written as null."""
    return math.nan if value is None else float(value)
