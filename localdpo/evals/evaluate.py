"""`localdpo eval`: did it help? From its options to the record of an evaluation.

Answers of every model are measured by heuristics and compared by a judge.

For what the record holds see records/evaluations.py; its metrics and duels are those of `figures`. It depends
on the options alone: no times, no costs, nothing of how many questions were asked at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from localdpo.answering.contestants import Contestant, contestants
from localdpo.answering.generator import (
    AnswersByName,
    AnswersByPlace,
    answer_all,
    kept_answers,
    longest_answers,
    missing_answers,
    plan_answers,
)
from localdpo.answering.prompts import choose_prompts
from localdpo.core.errors import UserError
from localdpo.core.text import counted
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
from localdpo.evals.table import conclusion, write_record
from localdpo.heuristics import Heuristic
from localdpo.heuristics.checks import check_rows, load_checks, with_standard
from localdpo.judging.base import Question
from localdpo.judging.cost import Budget
from localdpo.judging.prompts import conversation_text, question_about
from localdpo.judging.registry import (
    Hooks,
    JudgeRequest,
    Judges,
    cost_lines,
    judge_session,
    judge_spec,
    make_judges,
    wants_scores,
)
from localdpo.judging.rubric import MODES
from localdpo.judging.run import JudgeSession
from localdpo.records.answers import Header, Sampling
from localdpo.records.evaluations import name_after
from localdpo.records.rundir import RunDir, check_name
from localdpo.records.verdicts import Verdict, damaged_verdicts
from localdpo.records.votes import Votes

VERSION: Final = 1
NO_JUDGE: Final = "heuristics"
NO_JUDGE_HINT: Final = (
    "no judge: these are no incident reports of the demo, which rules could check; name one, such as "
    "--judge mlx:MODEL, --judge anthropic or --judge openai:URL#MODEL"
)


@dataclass(frozen=True)
class AnsweredPrompts:
    """What is evaluated: models, prompts and answers (none before they are generated)."""

    run: RunDir
    contestants: Sequence[Contestant]
    prompts: Sequence[PromptRow]
    source: str
    sampling: Sampling
    answers: AnswersByName = field(default_factory=dict)

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
        "verdicts": [
            {
                "first": duel.first,
                "second": duel.second,
                **{name: getattr(verdict, name) for name in ("score", "flipped", "identical")},
                "orders": [_verdict_row(order) for order in (verdict.first, verdict.second)],
            }
            for duel in duels
            for verdict in [duel.verdicts[i]]
        ],
        "scores": {name: _verdict_row(verdicts[i]) for name, verdicts in scores.items()},
    }


def _verdict_row(verdict: Verdict) -> dict[str, Any]:
    names = ("status", "choice", "score", "reason", "principle", "raw")
    return {name: getattr(verdict, name) for name in names} | {"score": rounded(verdict.score)}


# --- from options to a record ------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvalOptions(JudgeRequest):
    """What a person asked for; see `localdpo eval --help`. `first`: as `contestants` takes it."""

    run: RunDir
    prompts: str | None = None
    limit: int | None = 200
    sampling: Sampling = field(default_factory=lambda: Sampling(256, 1.0, 0))
    with_runs: tuple[RunDir, ...] = ()
    checks: Path | None = None
    name: str | None = None
    first: str | None = None


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation will do; nothing is generated or asked yet.

    `notes`: what to say before it begins, one line each.
    """

    options: EvalOptions
    name: str
    asked: AnsweredPrompts
    heuristics: list[Heuristic]
    judges: Judges
    answers_path: Path
    header: Header
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> AnswersByPlace:
        """The answers that are on the disk now."""
        return kept_answers(self.asked.run, self.asked.contestants, self.answers_path, self.header)

    @property
    def most_verdicts(self) -> int:
        """Questions to the judge, at most: both orders of every pair, and every answer if it scores."""
        models = self.asked.contestants
        pairs = 0 if self.judges.pairs is None else len(duels_of(models))
        singles = 0 if self.judges.scores is None else len(models)
        return len(self.asked.prompts) * (2 * pairs + singles)


def plan_evaluation(options: EvalOptions) -> EvaluationPlan:
    """Look at everything that was named. Loads no model. Raises UserError(s) for what does not fit."""
    rows, source = choose_prompts(options.run, options.prompts, (), options.limit)
    notes: list[str] = []
    models = contestants(options.run, options.with_runs, first=options.first, note=notes.append)
    own = [] if options.checks is None else load_checks(options.checks)
    check_rows(own, rows)
    spec = judge_spec(options, rows)
    judges = _judges(options, spec)
    name = options.name or (NO_JUDGE if spec is None else name_after(spec))
    check_name(name)
    notes += damaged_verdicts(options.run.verdicts)
    notes += [NO_JUDGE_HINT] if spec is None else []
    path, header = plan_answers(options.run, models, rows, options.sampling, source=source)
    asked = AnsweredPrompts(options.run, models, rows, source, options.sampling)
    heuristics = with_standard(own, [row.facts for row in rows])
    return EvaluationPlan(options, name, asked, heuristics, judges, path, header, tuple(notes))


def _judges(options: EvalOptions, spec: str | None) -> Judges:
    if spec is not None:
        modes = MODES if wants_scores(options, spec) else MODES[:1]
        return make_judges(replace(options, votes=options.run.votes), spec, modes)
    given = {
        "--scores": options.scores,
        "--rubric": options.rubrics,
        "--constitution": options.constitution,
        "--batch": options.batch,
        "--max-usd": options.max_usd is not None,
    }
    if useless := [name for name, value in given.items() if value]:
        raise UserError(f"{useless[0]}: there is no judge to use it; {NO_JUDGE_HINT}")
    return Judges()


def run_evaluation(
    plan: EvaluationPlan, *, budget: Budget | None = None, hooks: Hooks | None = None
) -> dict[str, Any]:
    """Generate what is missing, ask what is missing, write the files; the record that was written.

    Raises UserError for models, adapters and prompts that do not work, and JudgeStopped; in both cases call
    it again to resume.
    """
    options, hooks = plan.options, hooks or Hooks()
    if missing_answers(plan.header, plan.kept):
        plan.judges.find_keys()
    answers = answer_all(
        options.run,
        plan.asked.contestants,
        plan.asked.prompts,
        options.sampling,
        scores=False,
        source=plan.asked.source,
        on_answer=hooks.on_answer,
    )
    answered = replace(plan.asked, answers=answers)
    options.run.evaluations.mkdir(exist_ok=True)
    if plan.judges.pairs is None:
        record = evaluate(plan.name, answered, plan.heuristics, plan.judges)
    else:
        questions = plan.judges.questions(answered.pairs(), answered.singles())
        with judge_session(options, options.run.verdicts, questions, budget=budget, hooks=hooks) as session:
            votes = _votes(options)
            record = evaluate(plan.name, answered, plan.heuristics, plan.judges, session, votes)
    write_record(options.run, record)
    return record


def _votes(options: EvalOptions) -> Votes | None:
    """The votes of people, to compare a judge with; None for people themselves."""
    path = options.run.votes
    is_human = options.judge is not None and options.judge.startswith("human")
    return Votes(path) if path.is_file() and not is_human else None


def preview_lines(plan: EvaluationPlan) -> list[str]:
    """What the evaluation would generate, ask and cost at most. Loads no model and asks nobody."""
    asked, records = plan.asked, plan.kept
    missing = missing_answers(plan.header, records)
    labels = ", ".join(contestant.label for contestant in asked.contestants)
    wanted = len(asked.prompts) * len(asked.contestants)
    lines = [
        f"prompts: {len(asked.prompts)} of {asked.source}",
        f"models: {labels}",
        f"answers: {wanted:,} of at most {counted(plan.header.sampling.max_tokens, 'token')}, "
        f"{missing:,} to generate",
        f"heuristics: {', '.join(heuristic.name for heuristic in plan.heuristics)}",
    ]
    if plan.judges.pairs is not None:
        records = longest_answers(plan.header) if missing else records
        answers = {name: [records[i, name] for i in range(len(asked.prompts))] for name in plan.header.names}
        answered = replace(asked, answers=answers)
        questions = plan.judges.questions(answered.pairs(), answered.singles())
        name = plan.judges.pairs.name
        lines += cost_lines(plan.options, name, questions, plan.options.run.verdicts, known=not missing)
    return [*lines, *plan.notes]
