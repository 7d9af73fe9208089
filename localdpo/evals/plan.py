"""From the options of `localdpo eval` to an evaluation: what is asked of whom, and what it may cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from localdpo.answering.contestants import Contestant, contestants
from localdpo.answering.generator import answer_all, plan_answers
from localdpo.answering.prompts import choose_prompts
from localdpo.core.atomic import write_text
from localdpo.core.errors import UserError
from localdpo.data.prompts import PromptRow
from localdpo.evals.comparisons import duels_of
from localdpo.evals.evaluate import Asked, Judging, evaluate, pair_questions, score_questions
from localdpo.evals.files import write_record
from localdpo.heuristics import Heuristic
from localdpo.heuristics.checks import load_checks, with_standard
from localdpo.judging.base import Judge, Question
from localdpo.judging.budget import Budget
from localdpo.judging.constitution import Principles
from localdpo.judging.journal import Journal
from localdpo.judging.registry import JudgeOptions, make_judge
from localdpo.judging.rubric import rubrics_by_mode
from localdpo.judging.rules import NAME as RULES
from localdpo.judging.rules import judges_all, refuse_others
from localdpo.judging.runner import find_keys, preview
from localdpo.records.answers import AnswerRecord, Header, Sampling, read_answers, rows_of
from localdpo.records.rundir import RunDir, check_name
from localdpo.records.verdicts import Verdict, damaged_verdicts
from localdpo.records.votes import Votes

NO_JUDGE: Final = "heuristics"
NO_JUDGE_HINT: Final = (
    "no judge: these are no incident reports of the demo, which rules could check; name one, such as "
    "--judge mlx:MODEL, --judge anthropic or --judge openai:URL#MODEL"
)
# Characters of a token, for the length of an answer that is not there yet.
_CHARACTERS: Final = 5


@dataclass(frozen=True)
class Options:
    """What a person asked for; see `localdpo eval --help`."""

    run: RunDir
    prompts: str | None = None
    limit: int = 200
    sampling: Sampling = field(default_factory=lambda: Sampling(256, 1.0, 0))
    with_runs: tuple[RunDir, ...] = ()
    judge: str | None = None
    scores: bool | None = None
    rubrics: tuple[str, ...] = ()
    constitution: str | None = None
    principles: Principles = "sample"
    batch: bool = False
    concurrency: int | None = None
    judge_tokens: int | None = None
    prices: Path | None = None
    max_usd: float | None = None
    checks: Path | None = None
    name: str | None = None


@dataclass(frozen=True)
class Plan:
    """What an evaluation will do; nothing is generated or asked yet."""

    options: Options
    name: str
    contestants: list[Contestant]
    prompts: list[PromptRow]
    source: str
    heuristics: list[Heuristic]
    judge: Judge | None
    scorer: Judge | None
    notes: tuple[str, ...] = field(default=())

    @property
    def journal(self) -> Path:
        """The file of the run that keeps every verdict."""
        return self.options.run.verdicts

    @property
    def questions(self) -> int:
        """To the judge, at most: both orders of every pair, and every answer if it scores."""
        n, models = len(self.prompts), len(self.contestants)
        return 2 * n * len(duels_of(self.contestants)) + (n * models if self.scorer is not None else 0)

    def asked(self, answers: dict[str, list[AnswerRecord]]) -> Asked:
        """What is evaluated, with these answers."""
        return Asked(
            self.options.run, self.contestants, self.prompts, self.source, self.options.sampling, answers
        )


def plan_evaluation(options: Options) -> Plan:
    """Look at everything that was named. Raises UserError(s) for what does not fit."""
    rows, source = choose_prompts(options.run, options.prompts, (), options.limit)
    notes: list[str] = []
    every = contestants(options.run, options.with_runs, note=notes.append)
    own = [] if options.checks is None else load_checks(options.checks)
    facts = [row.facts for row in rows]
    spec = options.judge or (RULES if judges_all(facts) else None)
    refuse_others(spec or "", facts)
    judge, scorer = _judges(options, spec)
    name = options.name or (NO_JUDGE if spec is None else spec.partition(":")[0])
    check_name(name)
    notes += damaged_verdicts(options.run.verdicts)
    notes += [NO_JUDGE_HINT] if spec is None else []
    return Plan(options, name, every, rows, source, with_standard(own, facts), judge, scorer, tuple(notes))


def _judges(options: Options, spec: str | None) -> tuple[Judge | None, Judge | None]:
    """Who compares and who scores. Scores are asked for, or come free with the rules."""
    rubrics = rubrics_by_mode(options.rubrics)
    scores = options.scores if options.scores is not None else spec == RULES or "score" in rubrics
    if spec is None:
        _refuse_without_judge(options)
        return None, None
    judge_options = JudgeOptions(
        constitution=options.constitution,
        principles=options.principles,
        batch=options.batch,
        concurrency=options.concurrency,
        max_tokens=options.judge_tokens,
        prices=options.prices,
        votes=options.run.votes,
    )
    judge = make_judge(spec, replace(judge_options, mode="pairwise", rubric=rubrics.get("pairwise")))
    if not scores:
        return judge, None
    return judge, make_judge(spec, replace(judge_options, mode="score", rubric=rubrics.get("score")))


def _refuse_without_judge(options: Options) -> None:
    given = {
        "--scores": options.scores,
        "--rubric": options.rubrics,
        "--constitution": options.constitution,
        "--batch": options.batch,
        "--max-usd": options.max_usd is not None,
    }
    if useless := [name for name, value in given.items() if value]:
        raise UserError(f"{useless[0]}: there is no judge to use it; {NO_JUDGE_HINT}")


def run_evaluation(
    plan: Plan,
    *,
    on_answer: Callable[[AnswerRecord], None] | None = None,
    on_verdict: Callable[[Question, Verdict], None] | None = None,
    on_wait: Callable[[float, str], None] | None = None,
    budget: Budget | None = None,
) -> dict[str, Any]:
    """Generate what is missing, ask what is missing, write the files; the record that was written.

    Raises UserError for models, adapters and prompts that do not work, and JudgeStopped; in both cases the
    same call goes on where this one ended.
    """
    options = plan.options
    if _missing(plan):
        find_keys(plan.judge, plan.scorer)
    answers = answer_all(
        options.run,
        plan.contestants,
        plan.prompts,
        options.sampling,
        scores=False,
        source=plan.source,
        on_answer=on_answer,
    )
    asked = plan.asked(answers)
    options.run.evaluations.mkdir(exist_ok=True)
    judging = Judging(
        judge=plan.judge,
        scorer=plan.scorer,
        concurrency=options.concurrency,
        budget=budget or Budget(options.max_usd),
        votes=_votes(plan),
        on_verdict=on_verdict,
        on_wait=on_wait,
    )
    if plan.judge is None:
        record = evaluate(plan.name, asked, plan.heuristics, judging)
    else:
        with Journal(plan.journal, sync=_costs(plan.judge, asked)) as journal:
            record = evaluate(plan.name, asked, plan.heuristics, replace(judging, journal=journal))
    write_record(options.run, record)
    return record


def _votes(plan: Plan) -> Votes | None:
    """The votes of people, to compare a judge with; None for people themselves."""
    path = plan.options.run.votes
    is_human = plan.options.judge is not None and plan.options.judge.startswith("human")
    return Votes(path) if plan.judge is not None and path.is_file() and not is_human else None


def _costs(judge: Judge, asked: Asked) -> bool:
    """Whether a lost verdict would be lost money."""
    return any(judge.worst_case_usd(question) > 0 for question in pair_questions(asked)[:1])


def _answers_file(plan: Plan) -> tuple[Path, Header]:
    options = plan.options
    return plan_answers(options.run, plan.contestants, plan.prompts, options.sampling, source=plan.source)


def _missing(plan: Plan) -> int:
    """Answers that are still to be generated."""
    path, _ = _answers_file(plan)
    return read_answers(path).missing if path.is_file() else len(plan.prompts) * len(plan.contestants)


def preview_lines(plan: Plan) -> list[str]:
    """What the evaluation would generate, ask and cost at most. Loads no model and asks nobody."""
    options, missing = plan.options, _missing(plan)
    wanted = len(plan.prompts) * len(plan.contestants)
    answers: dict[str, list[AnswerRecord]] | None = None
    if not missing:
        path, header = _answers_file(plan)
        rows = rows_of(read_answers(path))
        answers = {name: [row[name] for row in rows] for name in header.names}
    labels = ", ".join(one.label for one in plan.contestants)
    lines = [
        f"prompts: {len(plan.prompts)} of {plan.source}",
        f"models: {labels}",
        f"answers: {wanted:,} of at most {options.sampling.max_tokens} tokens, {missing:,} to generate",
        f"heuristics: {', '.join(heuristic.name for heuristic in plan.heuristics)}",
    ]
    costs = [] if plan.judge is None else _cost_lines(plan, answers)
    return [*lines, *costs, *plan.notes]


def _cost_lines(plan: Plan, answers: dict[str, list[AnswerRecord]] | None) -> list[str]:
    assert plan.judge is not None
    known = answers is not None
    asked = plan.asked(answers if answers is not None else _longest_answers(plan))
    journal = Journal(plan.journal) if known and plan.journal.is_file() else None
    try:
        looks = [preview(plan.judge, pair_questions(asked), journal)]
        if plan.scorer is not None:
            looks.append(preview(plan.scorer, score_questions(asked), journal))
    finally:
        if journal is not None:
            journal.close()
    questions, usd = sum(look.asked for look in looks), sum(look.worst_usd for look in looks)
    cached = sum(look.cached for look in looks)
    price = "an amount that is not known (no price for this model)" if usd == float("inf") else f"${usd:.2f}"
    basis = "" if known else ", were every answer as long as it may be"
    lines = [
        f"judge: {plan.judge.name}, {questions:,} questions to ask, {cached:,} answered already",
        f"cost: at most {price}{basis}",
    ]
    if plan.options.max_usd is not None:
        lines.append(f"limit: ${plan.options.max_usd:.2f}")
    return lines


def _longest_answers(plan: Plan) -> dict[str, list[AnswerRecord]]:
    """Answers at the limit of length, no two alike, in the place of those that are not there yet."""
    tokens = plan.options.sampling.max_tokens
    return {
        one.name: [
            AnswerRecord(i, one.name, f"{one.name} ".ljust(tokens * _CHARACTERS, "x"), tokens, False)
            for i in range(len(plan.prompts))
        ]
        for one in plan.contestants
    }


def write_page(path: Path, text: str) -> None:
    """Write a page where a person wants it. Raises UserError when the folder is not there."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist")
    write_text(path, text)
