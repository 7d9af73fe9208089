"""The files of a run that hold its pairs of lowest margin (`pairs/step-000120.json`), read for the screen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from localdpo.core.errors import UserError
from localdpo.records.log import unseal
from localdpo.records.rundir import RunDir


@dataclass(frozen=True)
class Response:
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
    chosen: Response
    rejected: Response

    @property
    def key(self) -> str:
        """Tells pairs apart: the recipe may list several data sets."""
        return f"{self.row} {self.source}"


@dataclass(frozen=True)
class WorstPairs:
    """The pairs of lowest margin at `step`, the lowest first."""

    step: int
    beta: float
    pairs: tuple[WorstPair, ...]


def load_pairs(run: RunDir, path: str) -> WorstPairs:
    """The pairs in the file at `path`, relative to the run's folder, as its event names it.

    Raises UserError if it cannot be read, is not such a file, or leads out of the run's folder.
    """
    place = Path(path)
    if place.is_absolute() or ".." in place.parts:
        raise UserError(f"{run.path}: the log names {path}, which is not in the run's folder")
    file = run.path / place
    try:
        # A resumed run writes the files of its steps again.
        return _load(file, file.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from error


@lru_cache(maxsize=16)
def _load(path: Path, changed: int) -> WorstPairs:
    try:
        content = json.loads(unseal(path.read_bytes()))
        pairs = tuple(_pair(entry) for entry in content["pairs"])
        return WorstPairs(int(content["step"]), float(content["beta"]), pairs)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
        raise UserError(f"{path}: damaged, or not a file of pairs ({why})") from error


def _pair(entry: Mapping[str, Any]) -> WorstPair:
    return WorstPair(
        row=int(entry["row"]),
        source=str(entry["source"]),
        prompt=str(entry["prompt"]),
        margin=_number(entry["margin"]),
        chosen=_response(entry["chosen"]),
        rejected=_response(entry["rejected"]),
    )


def _response(entry: Mapping[str, Any]) -> Response:
    tokens = tuple((str(text), _number(reward)) for text, reward in entry["tokens"])
    return Response(str(entry["text"]), _number(entry["reward"]), tokens)


def _number(value: Any) -> float:
    """What was not finite is written as null."""
    return math.nan if value is None else float(value)
