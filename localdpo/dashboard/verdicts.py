"""Evaluations of a run (`eval/NAME.json`, see evals/evaluate.py) as the screens show them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from localdpo.core.atomic import entries
from localdpo.core.errors import UserError
from localdpo.records.log import unseal
from localdpo.records.rundir import RunDir

FOLDER: Final = "eval"
_VERSION: Final = 1

Outcome = Literal["won", "lost", "tied", "none"]
# What the list of verdicts can be narrowed to, in the order of the key.
FILTERS: Final = ("all", "lost", "tied", "flipped", "won", "none")


@dataclass(frozen=True)
class Estimate:
    """A value with its 95% interval; None where there is none."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Category:
    """The win rate in one category of prompts; `valid` is how many have a verdict."""

    name: str
    valid: int
    rate: Estimate


@dataclass(frozen=True)
class Duel:
    """Two models compared; every figure is of the first. `statuses`: verdicts that say nothing, by why."""

    first: str
    second: str
    prompts: int
    valid: int
    wins: int
    ties: int
    losses: int
    flips: int
    identical: int
    statuses: Mapping[str, int]
    rate: Estimate | None
    controlled: Estimate | None
    categories: tuple[Category, ...]
    people: Mapping[str, Any] | None


@dataclass(frozen=True)
class Metric:
    """A measured row: its means by contestant, what the difference means (better, worse, ..., or "")."""

    name: str
    digits: int
    means: Mapping[str, float | None]
    reading: str


@dataclass(frozen=True)
class Opinion:
    """What the judge said of a pair in one order; `choice` is of that order."""

    status: str
    choice: str
    reason: str


@dataclass(frozen=True)
class Judged:
    """The verdict on one prompt. `score` is 1 if the first won, 0 if the second, None without verdict."""

    id: str
    category: str
    prompt: str
    answers: tuple[str, str]
    score: float | None
    flipped: bool
    identical: bool
    orders: tuple[Opinion, ...]

    @property
    def outcome(self) -> Outcome:
        """How it ended for the first of the pair."""
        if self.score is None:
            return "none"
        return "tied" if self.score == 0.5 else "won" if self.score > 0.5 else "lost"

    def passes(self, name: str) -> bool:
        """Whether it belongs to the filter `name` of FILTERS."""
        return name == "all" or name == self.outcome or (name == "flipped" and self.flipped)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. `labels`: names of contestants for people; `versus`: (before, after)."""

    name: str
    judge: str | None
    source: str
    prompts: int
    sampling: Mapping[str, Any]
    labels: Mapping[str, str]
    versus: tuple[str, str]
    duels: tuple[Duel, ...]
    metrics: tuple[Metric, ...]
    conclusion: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]

    def judged(self, duel: Duel) -> list[Judged]:
        """The verdicts of a duel, in the order of the prompts."""
        found = []
        for row in self.rows:
            for verdict in row["verdicts"]:
                if (verdict["first"], verdict["second"]) == (duel.first, duel.second):
                    found.append(_judged(row, verdict))
        return found


def evaluation_files(run: RunDir) -> list[Path]:
    """The files of a run's evaluations, the newest first."""
    stamps = []
    for path in entries(run.path / FOLDER, "*.json"):
        try:
            stamps.append((path.stat().st_mtime_ns, path))
        except FileNotFoundError:
            continue
    return [path for _, path in sorted(stamps, reverse=True)]


def load_evaluation(path: Path) -> Evaluation:
    """An evaluation from its file. Raises UserError when it cannot be read or is none."""
    try:
        return _load(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error


def win_rate(run: RunDir) -> float | None:
    """The share won (ties half) by the trained model in the newest judged evaluation; None without one.

    A damaged file counts as none here; the judge screen says what is wrong with it.
    """
    for path in evaluation_files(run):
        try:
            found = load_evaluation(path)
        except UserError:
            continue
        if found.duels and found.duels[0].rate is not None:
            return found.duels[0].rate.value
    return None


@lru_cache(maxsize=256)
def _load(path: Path, changed: int) -> Evaluation:
    try:
        record = json.loads(unseal(path.read_bytes()))
        if record["v"] != _VERSION:
            raise ValueError(f"version {record['v']}, expected {_VERSION}")
        found = _evaluation(record)
        for duel in found.duels:
            found.judged(duel)
        return found
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path}: not an evaluation ({type(error).__name__}: {error})") from error


def _evaluation(record: Mapping[str, Any]) -> Evaluation:
    before, after = record["versus"]
    judge = record["judge"]
    return Evaluation(
        name=str(record["name"]),
        judge=None if judge is None else str(judge["name"]),
        source=str(record["source"]),
        prompts=int(record["prompts"]),
        sampling=record["sampling"],
        labels={str(one["name"]): str(one["label"]) for one in record["contestants"]},
        versus=(str(before), str(after)),
        duels=tuple(_duel(entry) for entry in record["duels"]),
        metrics=tuple(_metric(entry) for entry in record["metrics"]),
        conclusion=tuple(map(str, record["conclusion"])),
        rows=tuple(record["rows"]),
    )


def _duel(entry: Mapping[str, Any]) -> Duel:
    controlled = entry["length_controlled"]
    return Duel(
        first=str(entry["first"]),
        second=str(entry["second"]),
        **{
            key: int(entry[key])
            for key in ("prompts", "valid", "wins", "ties", "losses", "flips", "identical")
        },
        statuses=dict(entry["statuses"]),
        rate=_estimate(entry["win_rate"]),
        controlled=None if controlled is None else _estimate(controlled["rate"]),
        categories=tuple(_category(each) for each in entry["categories"]),
        people=entry["people"],
    )


def _category(entry: Mapping[str, Any]) -> Category:
    rate = _estimate(entry["win_rate"])
    if rate is None:
        raise ValueError("a category without a win rate")
    return Category(str(entry["name"]), int(entry["valid"]), rate)


def _estimate(entry: Mapping[str, Any] | None) -> Estimate | None:
    if entry is None or entry["value"] is None:
        return None
    low, high = entry["low"], entry["high"]
    return Estimate(
        float(entry["value"]), None if low is None else float(low), None if high is None else float(high)
    )


def _metric(entry: Mapping[str, Any]) -> Metric:
    return Metric(str(entry["name"]), int(entry["digits"]), dict(entry["means"]), str(entry["reading"]))


def _judged(row: Mapping[str, Any], verdict: Mapping[str, Any]) -> Judged:
    names = (verdict["first"], verdict["second"])
    one, other = (str(row["answers"][name]["text"]) for name in names)
    score = verdict["score"]
    return Judged(
        id=str(row["id"]),
        category=str(row["category"] or ""),
        prompt=str(row["prompt"]),
        answers=(one, other),
        score=None if score is None else float(score),
        flipped=bool(verdict["flipped"]),
        identical=bool(verdict["identical"]),
        orders=tuple(
            Opinion(str(each["status"]), str(each["choice"] or ""), str(each["reason"] or ""))
            for each in verdict["orders"]
        ),
    )
