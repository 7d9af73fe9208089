"""From the options of `localdpo eval` to an evaluation: what is generated, who is asked, what it may cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from localdpo.answering.contestants import Contestant, contestants
from localdpo.answering.generator import (
    AnswersByName,
    answer_all,
    longest_answers,
    missing_answers,
    plan_answers,
    read_partial,
)
from localdpo.answering.prompts import choose_prompts
from localdpo.core.atomic import write_text
from localdpo.core.errors import UserError
from localdpo.data.prompts import PromptRow
from localdpo.evals.evaluate import AnsweredPrompts, evaluate
from localdpo.evals.figures import duels_of
from localdpo.evals.files import write_record
from localdpo.heuristics import Heuristic
from localdpo.heuristics.checks import load_checks, with_standard
from localdpo.judging.base import Judge, Question
from localdpo.judging.cost import Budget
from localdpo.judging.pairwise import both_orders
from localdpo.judging.request import (
    Hooks,
    JudgeRequest,
    Judges,
    cost_lines,
    judge_session,
    judge_spec,
    make_judges,
    open_journal,
    wants_scores,
)
from localdpo.judging.run import find_keys
from localdpo.records.answers import Header, Sampling
from localdpo.records.rundir import RunDir, check_name
from localdpo.records.verdicts import damaged_verdicts
from localdpo.records.votes import Votes

NO_JUDGE: Final = "heuristics"
NO_JUDGE_HINT: Final = (
    "no judge: these are no incident reports of the demo, which rules could check; name one, such as "
    "--judge mlx:MODEL, --judge anthropic or --judge openai:URL#MODEL"
)


@dataclass(frozen=True)
class EvalOptions(JudgeRequest):
    """What a person asked for; see `localdpo eval --help`."""

    run: RunDir
    prompts: str | None = None
    limit: int = 200
    sampling: Sampling = field(default_factory=lambda: Sampling(256, 1.0, 0))
    with_runs: tuple[RunDir, ...] = ()
    checks: Path | None = None
    name: str | None = None


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation will do; nothing is generated or asked yet.

    `notes`: what to say before it begins, one line each.
    """

    options: EvalOptions
    name: str
    contestants: list[Contestant]
    prompts: list[PromptRow]
    source: str
    heuristics: list[Heuristic]
    judges: Judges
    answers_path: Path
    header: Header
    notes: tuple[str, ...] = ()

    @property
    def journal(self) -> Path:
        """The file of the run that keeps every verdict."""
        return self.options.run.verdicts

    @property
    def most_verdicts(self) -> int:
        """Questions to the judge, at most: both orders of every pair, and every answer if it scores."""
        pairs = 0 if self.judges.pairs is None else len(duels_of(self.contestants))
        singles = 0 if self.judges.scores is None else len(self.contestants)
        return len(self.prompts) * (2 * pairs + singles)

    def answered(self, answers: AnswersByName) -> AnsweredPrompts:
        """What is evaluated, with these answers."""
        options = self.options
        return AnsweredPrompts(
            options.run, self.contestants, self.prompts, self.source, options.sampling, answers
        )

    def questions(self, answered: AnsweredPrompts) -> list[tuple[Judge, Sequence[Question]]]:
        """Everything that is asked about these answers, by judge."""
        questions: list[tuple[Judge, Sequence[Question]]] = []
        if self.judges.pairs is not None:
            questions.append((self.judges.pairs, both_orders(answered.pairs())))
        if self.judges.scores is not None:
            questions.append((self.judges.scores, answered.singles()))
        return questions


def plan_evaluation(options: EvalOptions) -> EvaluationPlan:
    """Look at everything that was named. Loads no model. Raises UserError(s) for what does not fit."""
    rows, source = choose_prompts(options.run, options.prompts, (), options.limit)
    notes: list[str] = []
    models = contestants(options.run, options.with_runs, note=notes.append)
    own = [] if options.checks is None else load_checks(options.checks)
    facts = [row.facts for row in rows]
    spec = judge_spec(options, facts)
    judges = _judges(options, spec)
    name = options.name or (NO_JUDGE if spec is None else spec.partition(":")[0])
    check_name(name)
    notes += damaged_verdicts(options.run.verdicts)
    notes += [NO_JUDGE_HINT] if spec is None else []
    path, header = plan_answers(options.run, models, rows, options.sampling, source=source)
    heuristics = with_standard(own, facts)
    return EvaluationPlan(options, name, models, rows, source, heuristics, judges, path, header, tuple(notes))


def _judges(options: EvalOptions, spec: str | None) -> Judges:
    if spec is not None:
        scored = wants_scores(options, spec)
        votes = options.run.votes
        return make_judges(options, spec, ("pairwise", "score") if scored else ("pairwise",), votes=votes)
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
    if missing_answers(plan.answers_path, plan.header):
        find_keys(plan.judges.pairs, plan.judges.scores)
    answers = answer_all(
        options.run,
        plan.contestants,
        plan.prompts,
        options.sampling,
        scores=False,
        source=plan.source,
        on_answer=hooks.on_answer,
    )
    answered = plan.answered(answers)
    options.run.evaluations.mkdir(exist_ok=True)
    if plan.judges.pairs is None:
        record = evaluate(plan.name, answered, plan.heuristics, plan.judges)
    else:
        questions = plan.questions(answered)
        if hooks.on_questions is not None:
            hooks.on_questions(sum(len(to_ask) for _, to_ask in questions))
        with open_journal(plan.journal, questions) as journal:
            session = judge_session(options, journal, budget=budget, hooks=hooks)
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
    missing = missing_answers(plan.answers_path, plan.header)
    labels = ", ".join(contestant.label for contestant in plan.contestants)
    wanted = len(plan.prompts) * len(plan.contestants)
    lines = [
        f"prompts: {len(plan.prompts)} of {plan.source}",
        f"models: {labels}",
        f"answers: {wanted:,} of at most {plan.header.sampling.max_tokens} tokens, {missing:,} to generate",
        f"heuristics: {', '.join(heuristic.name for heuristic in plan.heuristics)}",
    ]
    if plan.judges.pairs is not None:
        records = longest_answers(plan.header) if missing else read_partial(plan.answers_path).records
        answers = {name: [records[i, name] for i in range(len(plan.prompts))] for name in plan.header.names}
        questions = plan.questions(plan.answered(answers))
        name = plan.judges.pairs.name
        lines += cost_lines(plan.options, name, questions, plan.journal, known=not missing)
    return [*lines, *plan.notes]


def write_page(path: Path, text: str) -> None:
    """Write a page where a person wants it. Raises UserError when the folder is not there."""
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist")
    write_text(path, text)
