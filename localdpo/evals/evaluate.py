"""Did it help? Answers of every model, measured by heuristics, compared by a judge, in one record.

The record is what `runs/NAME/eval/NAME.json` holds:

    v, name, run        1; of the evaluation; of the run
    source, prompts     where the prompts came from; how many
    sampling            of every answer
    contestants         [{name, label, role, fingerprint}], in the order of columns
    versus              [before, after]: what `difference` is of, after less before
    judge               {name, identity} or null
    metrics             rows as `figures.metric_record` returns them; the judge's own scores come last
    duels               as `figures.duel_record` returns them; the first answers "did it help?"
    strengths           Bradley-Terry: [{name, value, low, high}], in logits, the base 0
    conclusion          sentences
    rows                for each prompt {id, prompt, category, answers: {contestant: {text, tokens, finished,
                        metrics: {name: value}}}, verdicts: [{first, second, score, flipped, identical,
                        orders: [{status, choice, score, reason, principle, raw}, ...]}],
                        scores: {contestant: the same as one of orders}}; orders are (first, second), then
                        (second, first), and a choice is in the order it was asked in

It depends on the options alone: no times, no costs, nothing of how many questions were asked at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from localdpo.answering.contestants import Contestant
from localdpo.answering.generator import AnswersByName
from localdpo.data.prompts import PromptRow
from localdpo.evals.figures import (
    CATEGORY,
    DuelVerdicts,
    MetricValues,
    duel_record,
    duels_of,
    measure,
    metric_record,
    rounded,
    strengths_record,
)
from localdpo.evals.table import conclusion
from localdpo.heuristics import Heuristic
from localdpo.judging.base import Question
from localdpo.judging.pairwise import PairVerdict
from localdpo.judging.prompts import conversation_text, question_about
from localdpo.judging.request import Judges
from localdpo.judging.run import JudgeSession
from localdpo.records.answers import Sampling
from localdpo.records.rundir import RunDir
from localdpo.records.verdicts import Verdict
from localdpo.records.votes import Votes

VERSION = 1


@dataclass(frozen=True)
class AnsweredPrompts:
    """What is evaluated: models, prompts and answers, and where they belong."""

    run: RunDir
    contestants: Sequence[Contestant]
    prompts: Sequence[PromptRow]
    source: str
    sampling: Sampling
    answers: AnswersByName

    @property
    def versus(self) -> tuple[str, str]:
        """(before, after): what the trained adapter started from, and the trained adapter."""
        own = [contestant.name for contestant in self.contestants if contestant.role != "other"]
        return own[-2], own[-1]

    def pairs(self) -> list[Question]:
        """The two answers of every duel to every prompt, duel by duel; to be asked in both orders."""
        return [
            question_about(row, self.answers[first][i].text, self.answers[second][i].text)
            for first, second in duels_of(self.contestants)
            for i, row in enumerate(self.prompts)
        ]

    def singles(self) -> list[Question]:
        """Every answer alone, contestant by contestant."""
        return [
            question_about(row, self.answers[contestant.name][i].text)
            for contestant in self.contestants
            for i, row in enumerate(self.prompts)
        ]


def evaluate(
    name: str,
    answered: AnsweredPrompts,
    heuristics: Sequence[Heuristic],
    judges: Judges,
    session: JudgeSession | None = None,
    votes: Votes | None = None,
) -> dict[str, Any]:
    """The record of one evaluation. `votes` are of people, to compare the judge with.

    The same record comes out however many questions are asked at a time, and after any number of
    interruptions.
    Raises JudgeStopped when the judge can be asked no further; what it said is in the journal.
    """
    session = session or JudgeSession()
    count, names = len(answered.prompts), [contestant.name for contestant in answered.contestants]
    duels: list[DuelVerdicts] = []
    if judges.pairs is not None:
        verdicts = session.ask_pairs(judges.pairs, answered.pairs())
        duels = [
            DuelVerdicts(first, second, verdicts[i * count : (i + 1) * count])
            for i, (first, second) in enumerate(duels_of(answered.contestants))
        ]
    scores: dict[str, list[Verdict]] = {}
    if judges.scores is not None:
        given = session.ask(judges.scores, answered.singles())
        scores = {each: given[i * count : (i + 1) * count] for i, each in enumerate(names)}
    measured = measure(heuristics, answered.prompts, answered.answers)
    table = list(measured)
    if scores:
        values = {each: [verdict.score for verdict in given] for each, given in scores.items()}
        table.append(MetricValues("judge score, 1 to 5", "higher", 2, values))
    seed, versus = answered.sampling.seed, answered.versus
    metrics = [metric_record(metric, versus, seed) for metric in table]
    records = [duel_record(duel, answered.prompts, answered.answers, votes) for duel in duels]
    labels = {contestant.name: contestant.label for contestant in answered.contestants}
    judge = judges.pairs
    return {
        "v": VERSION,
        "name": name,
        "run": answered.run.name,
        "source": answered.source,
        "prompts": count,
        "sampling": asdict(answered.sampling),
        "contestants": [
            {"name": c.name, "label": c.label, "role": c.role, "fingerprint": c.fingerprint}
            for c in answered.contestants
        ],
        "versus": list(versus),
        "judge": None if judge is None else {"name": judge.name, "identity": dict(judge.identity)},
        "metrics": metrics,
        "duels": records,
        "strengths": strengths_record(duels, names, seed) if duels else [],
        "conclusion": conclusion(metrics, records, labels, versus),
        "rows": [_row(answered, i, measured, duels, scores) for i in range(count)],
    }


def _row(
    answered: AnsweredPrompts,
    i: int,
    measured: Sequence[MetricValues],
    duels: Sequence[DuelVerdicts],
    scores: Mapping[str, Sequence[Verdict]],
) -> dict[str, Any]:
    row = answered.prompts[i]
    category = row.facts.get(CATEGORY)
    return {
        "id": row.id,
        "prompt": conversation_text(row.prompt),
        "category": None if category is None else str(category),
        "answers": {
            name: {
                "text": records[i].text,
                "tokens": records[i].tokens,
                "finished": records[i].finished,
                "metrics": {metric.name: rounded(metric.values[name][i]) for metric in measured},
            }
            for name, records in answered.answers.items()
        },
        "verdicts": [_pair_row(duel, duel.verdicts[i]) for duel in duels],
        "scores": {name: _verdict_row(verdicts[i]) for name, verdicts in scores.items()},
    }


def _pair_row(duel: DuelVerdicts, verdict: PairVerdict) -> dict[str, Any]:
    return {
        "first": duel.first,
        "second": duel.second,
        "score": verdict.score,
        "flipped": verdict.flipped,
        "identical": verdict.identical,
        "orders": [_verdict_row(order) for order in (verdict.first, verdict.second)],
    }


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    return {
        "status": verdict.status,
        "choice": verdict.choice,
        "score": rounded(verdict.score),
        "reason": verdict.reason,
        "principle": verdict.principle,
        "raw": verdict.raw,
    }
