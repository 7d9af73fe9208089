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

from localdpo.core.atomic import newest_first, write_bytes
from localdpo.core.errors import UserError
from localdpo.records.log import as_record, read_sealed, seal
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
class ControlledRate:
    """The win rate at equal lengths, None where it is refused."""

    rate: RateEstimate | None


@dataclass(frozen=True)
class CategoryRate:
    """The win rate in one category of prompts; `valid` is how many have a verdict."""

    name: str
    valid: int
    win_rate: RateEstimate


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
    win_rate: RateEstimate | None
    length_controlled: ControlledRate | None
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
    choice: str | None
    reason: str | None


@dataclass(frozen=True)
class JudgedPair:
    """The verdict on two answers. `score` is 1 if the first won, 0 if the second, None without verdict."""

    first: str
    second: str
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
class EvaluatedAnswer:
    """A contestant's answer."""

    text: str


@dataclass(frozen=True)
class EvaluatedRow:
    """A prompt with its answers, by contestant, and the verdicts on them."""

    id: str
    prompt: str
    category: str | None
    answers: Mapping[str, EvaluatedAnswer]
    verdicts: tuple[JudgedPair, ...]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
        judge: its name, None without one.
        labels: contestant -> what to call it.
        versus: (before, after).
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
    rows: tuple[EvaluatedRow, ...]
    record: Mapping[str, Any]

    def judged(self, duel: JudgedDuel) -> list[tuple[EvaluatedRow, JudgedPair]]:
        """The prompts of a duel, in order, each with the verdict."""
        pair = (duel.first, duel.second)
        return [
            (row, verdict)
            for row in self.rows
            for verdict in row.verdicts
            if (verdict.first, verdict.second) == pair
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
    return newest_first(run.evaluations, "*.json")


def read_evaluation(path: Path) -> Evaluation:
    """An evaluation from its file. Raises UserError when it cannot be read or is none."""
    return read_sealed(path, _evaluation, "an evaluation that `localdpo eval` wrote")


def name_after(judge: str) -> str:
    """What an evaluation by this judge is called that was given no name: the kind of judge."""
    return judge.partition(":")[0]


def judged_rate(run: RunDir) -> RateEstimate | None:
    """The share won (ties half) by the trained model in the newest judged evaluation; None without one.

    A damaged file counts as none here; the judge screen says what is wrong with it.
    """
    for path in evaluation_files(run):
        try:
            duels = read_evaluation(path).duels
        except UserError:
            continue
        if duels and duels[0].win_rate is not None:
            return duels[0].win_rate
    return None


def _evaluation(record: Mapping[str, Any]) -> Evaluation:
    judge = record["judge"]
    evaluation = as_record(
        Evaluation,
        record,
        _VERSION,
        judge=None if judge is None else str(judge["name"]),
        labels={str(who["name"]): str(who["label"]) for who in record["contestants"]},
        record=record,
    )
    for row in evaluation.rows:
        for verdict in row.verdicts:
            if not {verdict.first, verdict.second} <= row.answers.keys():
                raise ValueError(f"prompt {row.id}: a verdict on an answer that is not there")
    return evaluation
