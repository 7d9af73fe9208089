"""The figures of an evaluation as JSON values: a row for each metric, and what a judge's verdicts come to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from localdpo.answering.contestants import Contestant
from localdpo.answering.generator import AnswersByName
from localdpo.data.prompts import PromptRow
from localdpo.evals import statistics
from localdpo.evals.statistics import Estimate
from localdpo.heuristics import Direction, Heuristic
from localdpo.judging.base import PairVerdict
from localdpo.records.votes import Votes, subject, text_id

# Finer differences between two computers' arithmetic must not show in a file.
DIGITS: Final = 6
CATEGORY: Final = "category"
# A kappa of fewer votes says next to nothing.
FEWEST_VOTES: Final = 10


@dataclass(frozen=True, slots=True)
class MetricValues:
    """One metric of every answer: contestant -> a value for each prompt, None where it does not apply."""

    name: str
    direction: Direction
    digits: int
    values: Mapping[str, Sequence[float | None]]


def measure(
    heuristics: Sequence[Heuristic],
    prompts: Sequence[PromptRow],
    answers: AnswersByName,
) -> list[MetricValues]:
    """Every heuristic on every answer, then tokens and the share that ended by itself.

    A heuristic that applies to no answer of any contestant is skipped.
    """
    metrics = []
    for heuristic in heuristics:
        values = {
            name: [
                heuristic.score(row.text, record.text, row.facts)
                for row, record in zip(prompts, records, strict=True)
            ]
            for name, records in answers.items()
        }
        if any(value is not None for column in values.values() for value in column):
            metrics.append(MetricValues(heuristic.name, heuristic.direction, heuristic.digits, values))
    tokens = {name: [float(r.tokens) for r in records] for name, records in answers.items()}
    ended = {name: [float(r.finished) for r in records] for name, records in answers.items()}
    return [
        *metrics,
        MetricValues("tokens", "neutral", 1, tokens),
        MetricValues("ended by itself", "higher", 3, ended),
    ]


def metric_record(metric: MetricValues, versus: tuple[str, str], seed: int) -> dict[str, Any]:
    """The row of a metric as JSON values.

    `means` and `counts` of the prompts it applies to, by contestant; `difference` is the second of `versus`
    less the first over the prompts where both have a value (None if there are none), with its interval;
    `reading` says what that means: better, worse, unclear, same, or "" where neither way is better.
    """
    columns = {
        name: [value for value in values if value is not None] for name, values in metric.values.items()
    }
    pairs = zip(*(metric.values[name] for name in versus), strict=True)
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    difference = None
    if both:
        difference = statistics.paired_difference([a for a, _ in both], [b for _, b in both], seed=seed)
    return {
        "name": metric.name,
        "direction": metric.direction,
        "digits": metric.digits,
        "means": {n: rounded(sum(c) / len(c)) if c else None for n, c in columns.items()},
        "counts": {name: len(column) for name, column in columns.items()},
        "difference": None if difference is None else {**estimate_record(difference), "prompts": len(both)},
        "reading": reading(difference, metric.direction),
    }


def reading(difference: Estimate | None, direction: Direction) -> str:
    """Whether a difference is better or worse beyond its interval; same: equal in every resample."""
    if direction == "neutral":
        return ""
    if difference is not None and difference.value == difference.low == difference.high == 0:
        return "same"
    if difference is None or not difference.excludes(0.0):
        return "unclear"
    return "better" if (difference.value > 0) == (direction == "higher") else "worse"


def estimate_record(estimate: Estimate) -> dict[str, float | None]:
    return {name: rounded(getattr(estimate, name)) for name in ("value", "low", "high")}


def rounded(value: float | None) -> float | None:
    """To DIGITS after the point; a negative zero becomes zero."""
    return None if value is None else round(value, DIGITS) + 0.0


@dataclass(frozen=True, slots=True)
class DuelVerdicts:
    """Two models and a verdict for each prompt; a score of 1 is a win for `first`."""

    first: str
    second: str
    verdicts: Sequence[PairVerdict]

    @property
    def scores(self) -> list[float | None]:
        """One a prompt, None without two verdicts that say something."""
        return [verdict.score for verdict in self.verdicts]


def duels_of(every: Sequence[Contestant]) -> list[tuple[str, str]]:
    """Who is compared with whom: trained, start and base each with those before it, trained with the others.

    The pair that answers "did it help?" comes first.
    """
    own = [one.name for one in every if one.role != "other"][::-1]
    others = [one.name for one in every if one.role == "other"]
    chain = list(pairwise(own))
    rest = [(a, b) for i, a in enumerate(own) for b in own[i + 2 :]]
    return [*chain[:1], *rest, *chain[1:], *((own[0], other) for other in others)]


def duel_record(
    duel: DuelVerdicts,
    prompts: Sequence[PromptRow],
    answers: AnswersByName,
    votes: Votes | None = None,
) -> dict[str, Any]:
    """All figures of one duel as JSON values; those that need a valid verdict are None without any."""
    scored = [(i, s) for i, s in enumerate(duel.scores) if s is not None]
    scores = [s for _, s in scored]
    rate = statistics.win_rate(scores) if scores else None
    return {
        "first": duel.first,
        "second": duel.second,
        "prompts": len(duel.verdicts),
        **tally(duel.verdicts),
        "position_bias": _bias(duel.verdicts),
        "win_rate": None if rate is None else estimate_record(rate),
        "sign_test_p": float(f"{statistics.sign_test(scores):.6g}") if scores else None,
        "prompts_needed": None if rate is None else statistics.prompts_needed(rate.value),
        "length_controlled": _length_controlled(duel, scored, answers) if scores else None,
        "categories": _categories(scored, prompts),
        "people": None if votes is None else _people(duel, prompts, answers, votes),
    }


def tally(verdicts: Sequence[PairVerdict]) -> dict[str, Any]:
    """Counts of verdicts as JSON values.

    `valid` pairs have a score; `flips` are those whose two orders disagree, and `ties` include them and
    `identical` answers, which nobody was asked about. `statuses` are of verdicts that say nothing, refusals
    by their category; `consistency` is the share of the valid pairs that were asked whose orders agree.
    """
    scores = [verdict.score for verdict in verdicts if verdict.valid]
    flips = sum(verdict.flipped for verdict in verdicts)
    identical = sum(verdict.identical for verdict in verdicts)
    asked = len(scores) - identical
    # Verdicts on identical answers are "ok".
    orders = [order for verdict in verdicts for order in (verdict.first, verdict.second)]
    silent = [order for order in orders if order.status != "ok"]
    whys = Counter(order.reason for order in silent if order.reason)
    return {
        "valid": len(scores),
        "wins": scores.count(1.0),
        "ties": scores.count(0.5),
        "losses": scores.count(0.0),
        "identical": identical,
        "flips": flips,
        "statuses": dict(sorted(Counter(order.label for order in silent).items())),
        # The commonest reason, in the judge's or our words, of verdicts that say nothing.
        "why": whys.most_common(1)[0][0] if whys else "",
        "consistency": rounded(1 - flips / asked) if asked else None,
    }


def _bias(verdicts: Sequence[PairVerdict]) -> dict[str, Any] | None:
    asked = [verdict.choices for verdict in verdicts if verdict.choices and not verdict.identical]
    if not asked:
        return None
    bias = statistics.position_bias([c.count("first") for c in asked], [c.count("second") for c in asked])
    return None if bias is None else {**estimate_record(bias), "flagged": bias.excludes(0.0)}


def _length_controlled(
    duel: DuelVerdicts, scored: Sequence[tuple[int, float]], answers: AnswersByName
) -> dict[str, Any]:
    longer = [answers[duel.first][i].tokens - answers[duel.second][i].tokens for i, _ in scored]
    controlled = statistics.length_controlled([s for _, s in scored], longer)
    return {
        "rate": None if controlled.rate is None else estimate_record(controlled.rate),
        "phi": rounded(controlled.phi),
        "refused": controlled.refused,
    }


def _categories(scored: Sequence[tuple[int, float]], prompts: Sequence[PromptRow]) -> list[dict[str, Any]]:
    """The win rate in each category of the rows' column `category`, in the order of the alphabet."""
    groups: dict[str, list[float]] = {}
    for i, score in scored:
        category = prompts[i].facts.get(CATEGORY)
        if category is not None:
            groups.setdefault(str(category), []).append(score)
    return [
        {"name": name, "valid": len(scores), "win_rate": estimate_record(statistics.win_rate(scores))}
        for name, scores in sorted(groups.items())
    ]


def _people(
    duel: DuelVerdicts, prompts: Sequence[PromptRow], answers: AnswersByName, votes: Votes
) -> dict[str, Any] | None:
    """How the judge agrees with the votes of people on the very same answers; None without such votes."""
    judge, people = [], []
    for i, score in enumerate(duel.scores):
        texts = [text_id(answers[name][i].text) for name in (duel.first, duel.second)]
        vote = votes.of(subject(prompts[i].id, *texts))
        if score is None or vote is None or texts[0] == texts[1]:
            continue
        preferred = {"first": vote.answers[0], "second": vote.answers[1], "tie": None}[vote.choice]
        judge.append(score)
        people.append(0.5 if preferred is None else float(preferred == texts[0]))
    if not judge:
        return None
    same = sum(a == b for a, b in zip(judge, people, strict=True)) / len(judge)
    kappa = statistics.quadratic_kappa(judge, people, [0.0, 0.5, 1.0]) if len(judge) >= FEWEST_VOTES else None
    return {"votes": len(judge), "agreement": rounded(same), "kappa": rounded(kappa)}


def strengths_record(duels: Sequence[DuelVerdicts], names: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Bradley-Terry strengths from every valid verdict; the first of `names` is the base, 0.

    A model that no verdict links to the base, by itself or through others, has no strength and is skipped.
    """
    linked = _linked(duels, names[0])
    kept = [name for name in names if name in linked]
    if len(kept) < 2:
        return []
    column = {name: i for i, name in enumerate(kept)}
    tables = np.zeros((len(duels[0].verdicts), len(kept), len(kept)))
    for duel in duels:
        if duel.first not in column or duel.second not in column:
            continue
        one, other = column[duel.first], column[duel.second]
        for prompt, score in enumerate(duel.scores):
            if score is not None:
                tables[prompt, one, other] += score
                tables[prompt, other, one] += 1 - score
    judged = tables[tables.sum(axis=(1, 2)) > 0]
    estimates = zip(kept, statistics.ranking(judged, seed=seed), strict=True)
    return [{"name": name, **estimate_record(estimate)} for name, estimate in estimates]


def _linked(duels: Sequence[DuelVerdicts], base: str) -> set[str]:
    """The models that valid verdicts link to the base."""
    edges = [{d.first, d.second} for d in duels if any(score is not None for score in d.scores)]
    linked = {base}
    while grown := {name for edge in edges if edge & linked for name in edge} - linked:
        linked |= grown
    return linked
