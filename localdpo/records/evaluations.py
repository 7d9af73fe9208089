"""The evaluations of a run: `runs/NAME/eval/NAME.json`, each written at once, with a checksum (see `seal`).

v, name, run        1; of the evaluation; of the run
source, prompts     where the prompts came from; how many
sampling            of every answer
contestants         [{name, label, role, fingerprint}], in the order of columns
versus              [before, after]: what `difference` is of, after less before
judge               {name, identity} or null
metrics             [{name, direction, digits, means, counts, difference, reading}]
duels               two models compared by the judge; the first answers "did it help?"
strengths           Bradley-Terry: [{name, value, low, high}], in logits, the base 0
conclusion          sentences
rows                for each prompt {id, prompt, category, answers: {contestant: {text, tokens, finished,
                    metrics: {name: value}}}, verdicts: [{first, second, score, flipped, identical,
                    orders: [{status, choice, score, reason, principle, raw}, ...]}],
                    scores: {contestant: the same as one of orders}}; orders are (first, second), then
                    (second, first), and a choice is in the order it was asked in
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from localdpo.core.atomic import entries, write_bytes
from localdpo.core.errors import UserError
from localdpo.records.log import read_sealed, seal
from localdpo.records.rundir import RunDir

_VERSION: Final = 1

Outcome = Literal["won", "lost", "tied", "none"]


@dataclass(frozen=True)
class RateEstimate:
    """A value with its 95% interval; None where there is none."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class CategoryRate:
    """The win rate in one category of prompts; `valid` is how many have a verdict."""

    name: str
    valid: int
    rate: RateEstimate


@dataclass(frozen=True)
class JudgedDuel:
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
    rate: RateEstimate | None
    controlled: RateEstimate | None
    categories: tuple[CategoryRate, ...]
    people: Mapping[str, Any] | None


@dataclass(frozen=True)
class AnswerMetric:
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
class JudgedPrompt:
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


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        labels: contestant -> what to call it.
        versus: (before, after).
        rows: one a prompt, see the module.
        record: the object in the file.
    """

    name: str
    judge: str | None
    source: str
    prompts: int
    sampling: Mapping[str, Any]
    labels: Mapping[str, str]
    versus: tuple[str, str]
    duels: tuple[JudgedDuel, ...]
    metrics: tuple[AnswerMetric, ...]
    conclusion: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    record: Mapping[str, Any]

    def judged(self, duel: JudgedDuel) -> list[JudgedPrompt]:
        """The verdicts of a duel, in the order of the prompts."""
        return [
            _judged(row, verdict)
            for row in self.rows
            for verdict in row["verdicts"]
            if (verdict["first"], verdict["second"]) == (duel.first, duel.second)
        ]


def write_evaluation(run: RunDir, record: Mapping[str, Any]) -> Path:
    """Write a record; its path. Raises UserError for a full disk."""
    path = run.evaluations / f"{record['name']}.json"
    path.parent.mkdir(exist_ok=True)
    write_bytes(path, seal(evaluation_text(record)))
    return path


def evaluation_text(record: Mapping[str, Any]) -> str:
    """The JSON text of a record, without the checksum of its file."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False, indent=1) + "\n"


def evaluation_files(run: RunDir) -> list[Path]:
    """The files of a run's evaluations, the newest first."""
    stamps = []
    for path in entries(run.evaluations, "*.json"):
        try:
            stamps.append((path.stat().st_mtime_ns, path))
        except FileNotFoundError:
            continue
    return [path for _, path in sorted(stamps, reverse=True)]


def read_evaluation(path: Path) -> Evaluation:
    """An evaluation from its file. Raises UserError when it cannot be read or is none."""
    return read_sealed(path, _evaluation, "an evaluation that `localdpo eval` wrote")


def win_rate(run: RunDir) -> float | None:
    """The share won (ties half) by the trained model in the newest judged evaluation; None without one.

    A damaged file counts as none here; the judge screen says what is wrong with it.
    """
    for path in evaluation_files(run):
        try:
            duels = read_evaluation(path).duels
        except UserError:
            continue
        if duels and duels[0].rate is not None:
            return duels[0].rate.value
    return None


def _evaluation(record: Mapping[str, Any]) -> Evaluation:
    if record["v"] != _VERSION:
        raise ValueError(f"version {record['v']}, expected {_VERSION}")
    before, after = record["versus"]
    judge = record["judge"]
    evaluation = Evaluation(
        name=str(record["name"]),
        judge=None if judge is None else str(judge["name"]),
        source=str(record["source"]),
        prompts=int(record["prompts"]),
        sampling=record["sampling"],
        labels={str(who["name"]): str(who["label"]) for who in record["contestants"]},
        versus=(str(before), str(after)),
        duels=tuple(_duel(entry) for entry in record["duels"]),
        metrics=tuple(
            AnswerMetric(str(row["name"]), int(row["digits"]), dict(row["means"]), str(row["reading"]))
            for row in record["metrics"]
        ),
        conclusion=tuple(map(str, record["conclusion"])),
        rows=tuple(record["rows"]),
        record=record,
    )
    for duel in evaluation.duels:
        evaluation.judged(duel)  # raises for rows that are not as they should be
    return evaluation


def _duel(entry: Mapping[str, Any]) -> JudgedDuel:
    controlled = entry["length_controlled"]
    return JudgedDuel(
        first=str(entry["first"]),
        second=str(entry["second"]),
        **{
            key: int(entry[key])
            for key in ("prompts", "valid", "wins", "ties", "losses", "flips", "identical")
        },
        statuses=dict(entry["statuses"]),
        rate=_estimate(entry["win_rate"]),
        controlled=None if controlled is None else _estimate(controlled["rate"]),
        categories=tuple(_category(category) for category in entry["categories"]),
        people=entry["people"],
    )


def _category(entry: Mapping[str, Any]) -> CategoryRate:
    rate = _estimate(entry["win_rate"])
    if rate is None:
        raise ValueError("a category without a win rate")
    return CategoryRate(str(entry["name"]), int(entry["valid"]), rate)


def _estimate(entry: Mapping[str, Any] | None) -> RateEstimate | None:
    if entry is None or entry["value"] is None:
        return None
    low, high = entry["low"], entry["high"]
    return RateEstimate(
        float(entry["value"]), None if low is None else float(low), None if high is None else float(high)
    )


def _judged(row: Mapping[str, Any], verdict: Mapping[str, Any]) -> JudgedPrompt:
    names = (verdict["first"], verdict["second"])
    first, second = (str(row["answers"][name]["text"]) for name in names)
    score = verdict["score"]
    return JudgedPrompt(
        id=str(row["id"]),
        category=str(row["category"] or ""),
        prompt=str(row["prompt"]),
        answers=(first, second),
        score=None if score is None else float(score),
        flipped=bool(verdict["flipped"]),
        identical=bool(verdict["identical"]),
        orders=tuple(
            Opinion(str(order["status"]), str(order["choice"] or ""), str(order["reason"] or ""))
            for order in verdict["orders"]
        ),
    )
