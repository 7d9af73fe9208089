"""Did it help? Answers of every model, measured by heuristics, compared by a judge, in one record.

The record is what `runs/NAME/eval/NAME.json` holds:

    v, name, run        1; of the evaluation; of the run
    source, prompts     where the prompts came from; how many
    sampling            of every answer
    contestants         [{name, label, role, fingerprint}], in the order of columns
    versus              [before, after]: what `difference` is of, after less before
    judge               {name, identity} or null
    metrics             rows as `metrics.metric_record` makes them; the judge's own scores stand last
    duels               as `comparisons.duel_record` makes them; the first answers "did it help?"
    strengths           Bradley-Terry: [{name, value, low, high}], in logits, the base 0
    conclusion          sentences
    rows                for each prompt {id, prompt, category, answers: {contestant: {text, tokens, finished,
                        metrics: {name: value}}}, verdicts: [{first, second, score, flipped, identical,
                        orders: [{status, choice, score, reason, principle, raw}, ...]}],
                        scores: {contestant: the same as one of orders}}; orders are (first, second), then
                        (second, first), and a choice is in the order it was asked in

It depends on nothing but what was asked: no times, no costs, nothing of how many questions went at a time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from localdpo.answering.contestants import Contestant
from localdpo.data.prompts import PromptRow
from localdpo.data.types import Side
from localdpo.evals.comparisons import CATEGORY, Duel, duel_record, duels_of, strengths_record
from localdpo.evals.conclusion import conclusion
from localdpo.evals.metrics import Measured, measure, metric_record, rounded
from localdpo.heuristics import Heuristic
from localdpo.judging.base import Judge, Question, Verdict
from localdpo.judging.pairwise import Pair, PairVerdict, questions_of
from localdpo.judging.runner import Asking
from localdpo.records.answers import AnswerRecord, Sampling
from localdpo.records.rundir import RunDir
from localdpo.records.votes import Votes

VERSION = 1
Answers = Mapping[str, Sequence[AnswerRecord]]


@dataclass(frozen=True)
class Asked:
    """What is evaluated: models, prompts and answers, and where they belong."""

    run: RunDir
    contestants: Sequence[Contestant]
    prompts: Sequence[PromptRow]
    source: str
    sampling: Sampling
    answers: Answers

    @property
    def versus(self) -> tuple[str, str]:
        """(before, after): what the trained adapter started from, and the trained adapter."""
        own = [one.name for one in self.contestants if one.role != "other"]
        return own[-2], own[-1]

    @property
    def facts(self) -> list[Mapping[str, Any]]:
        """The other columns of each row as JSON values (a parquet file may hold dates)."""
        return [json.loads(json.dumps(dict(row.facts), default=str)) for row in self.prompts]


@dataclass(frozen=True)
class Judging(Asking):
    """Who judges. `scorer` gives 1 to 5 to single answers; None leaves that out. `votes` are of people."""

    judge: Judge | None = None
    scorer: Judge | None = None
    votes: Votes | None = None


def conversation_text(prompt: Side) -> str:
    """A prompt as a judge reads it: one user's message as it is, a conversation with the roles named."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and prompt[0].get("role") == "user":
        return str(prompt[0].get("content", ""))
    return "\n\n".join(f"{each.get('role')}: {each.get('content') or ''}" for each in prompt)


def pairs_of(asked: Asked) -> list[tuple[str, str, list[Pair]]]:
    """Every duel with its pairs: (first, second, one pair for each prompt)."""
    facts = asked.facts
    return [
        (
            first,
            second,
            [
                Pair(
                    row.id,
                    conversation_text(row.prompt),
                    (asked.answers[first][i].text, asked.answers[second][i].text),
                    facts[i],
                )
                for i, row in enumerate(asked.prompts)
            ],
        )
        for first, second in duels_of(asked.contestants)
    ]


def pair_questions(asked: Asked) -> list[Question]:
    """All that the judge is asked, both orders of every pair."""
    return questions_of(pair for _, _, pairs in pairs_of(asked) for pair in pairs)


def score_questions(asked: Asked) -> list[Question]:
    """All that the scorer is asked: every answer, contestant by contestant."""
    facts = asked.facts
    return [
        Question(row.id, conversation_text(row.prompt), (asked.answers[one.name][i].text,), facts[i])
        for one in asked.contestants
        for i, row in enumerate(asked.prompts)
    ]


def evaluate(name: str, asked: Asked, heuristics: Sequence[Heuristic], judging: Judging) -> dict[str, Any]:
    """The record of one evaluation.

    The same record comes out however many questions go at a time, and after any number of interruptions.
    Raises JudgeStopped when the judge can be asked no further; what it said is in the journal.
    """
    duels = _judge(asked, judging)
    scores = _score(asked, judging)
    measured = measure(heuristics, asked.prompts, asked.answers)
    table = [*measured, *([_scores_measured(scores)] if scores else [])]
    seed, versus = asked.sampling.seed, asked.versus
    metrics = [metric_record(each, versus, seed) for each in table]
    records = [duel_record(duel, asked.prompts, asked.answers, judging.votes) for duel in duels]
    labels = {one.name: one.label for one in asked.contestants}
    names = [one.name for one in asked.contestants]
    return {
        "v": VERSION,
        "name": name,
        "run": asked.run.name,
        "source": asked.source,
        "prompts": len(asked.prompts),
        "sampling": asdict(asked.sampling),
        "contestants": [
            {"name": c.name, "label": c.label, "role": c.role, "fingerprint": c.fingerprint}
            for c in asked.contestants
        ],
        "versus": list(versus),
        "judge": _judge_record(judging.judge),
        "metrics": metrics,
        "duels": records,
        "strengths": strengths_record(duels, names, seed) if duels else [],
        "conclusion": conclusion(metrics, records, labels, versus),
        "rows": [_row(asked, i, measured, duels, scores) for i in range(len(asked.prompts))],
    }


def _judge(asked: Asked, judging: Judging) -> list[Duel]:
    if judging.judge is None:
        return []
    duels = pairs_of(asked)
    every = [pair for _, _, pairs in duels for pair in pairs]
    verdicts = judging.pairs(judging.judge, every)
    n = len(asked.prompts)
    return [
        Duel(first, second, verdicts[place * n : (place + 1) * n])
        for place, (first, second, _) in enumerate(duels)
    ]


def _score(asked: Asked, judging: Judging) -> dict[str, list[Verdict]]:
    if judging.scorer is None:
        return {}
    verdicts = judging.ask(judging.scorer, score_questions(asked))
    n = len(asked.prompts)
    return {one.name: verdicts[i * n : (i + 1) * n] for i, one in enumerate(asked.contestants)}


def _scores_measured(scores: Mapping[str, Sequence[Verdict]]) -> Measured:
    values = {name: [verdict.score for verdict in verdicts] for name, verdicts in scores.items()}
    return Measured("judge score, 1 to 5", "higher", 2, values)


def _judge_record(judge: Judge | None) -> dict[str, Any] | None:
    return None if judge is None else {"name": judge.name, "identity": dict(judge.identity)}


def _row(
    asked: Asked,
    i: int,
    measured: Sequence[Measured],
    duels: Sequence[Duel],
    scores: Mapping[str, Sequence[Verdict]],
) -> dict[str, Any]:
    row = asked.prompts[i]
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
                "metrics": {each.name: rounded(each.values[name][i]) for each in measured},
            }
            for name, records in asked.answers.items()
        },
        "verdicts": [_pair_row(duel, duel.verdicts[i]) for duel in duels],
        "scores": {name: _verdict_row(verdicts[i]) for name, verdicts in scores.items()},
    }


def _pair_row(duel: Duel, verdict: PairVerdict) -> dict[str, Any]:
    return {
        "first": duel.first,
        "second": duel.second,
        "score": verdict.score,
        "flipped": verdict.flipped,
        "identical": verdict.identical,
        "orders": [_verdict_row(one) for one in (verdict.first, verdict.second)],
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
