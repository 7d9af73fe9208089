"""`localdpo rounds`: sample, judge, train, evaluate, again and again, each round from the policy of the last.

Each round is the commands `prefs build`, `train` and `eval` in one run's folder (records/series.py):

    round-1/build/       the policy's answers to rounds.prompts, the judge's verdicts, the pairs
    round-1/             the run that trains on these pairs
    round-1/eval/        its policy against the one before and against the first start, on held-out prompts

What these commands find on the disk they do not do again, so a series that was stopped anywhere goes on
there and comes to the same files. DPO on the policy's own answers, round by round, is iterative or online DPO
(Xu et al. 2023, arXiv 2312.16682; Guo et al. 2024, arXiv 2402.04792); where the model judges itself it is
called self-rewarding (Yuan et al. 2024, arXiv 2401.10020).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Final, Unpack

from localdpo.answering.generator import answer_all, longest_text, mean_logps
from localdpo.answering.prompts import HeldOut, prompts_of, valid_sources
from localdpo.core.errors import UserError, UserErrors
from localdpo.core.text import counted
from localdpo.data.encode import Limits
from localdpo.data.prompts import PromptRow
from localdpo.evals.evaluate import EvalOptions, EvaluationPlan, plan_evaluation, run_evaluation
from localdpo.evals.figures import rounded
from localdpo.judging.prompts import conversation_text, question_about
from localdpo.judging.registry import (
    JudgeOptions,
    JudgeRequest,
    Judges,
    cost_lines,
    judge_spec,
    make_judges,
    wants_scores,
)
from localdpo.judging.rubric import MODES, rubrics_by_mode
from localdpo.launch.begin import differing_keys
from localdpo.launch.processes import watch
from localdpo.model.backend import give_back_memory
from localdpo.objective.numerics import sequence_kl
from localdpo.prefs.build import REPORT, TRAIN, NoPairs, run_build
from localdpo.prefs.build_plan import BuildOptions, plan_build
from localdpo.prefs.build_plan import preview_lines as build_preview
from localdpo.prefs.candidates import CandidateSource
from localdpo.recipe.arguments import Count, checked
from localdpo.recipe.load import dump_recipe, load_recipe
from localdpo.recipe.schema import BASE, DataSource, Recipe, RoundsSection
from localdpo.records.answers import Sampling
from localdpo.records.checkpoints import require_checkpoint
from localdpo.records.evaluations import Evaluation, RateEstimate, read_evaluation
from localdpo.records.rundir import RunDir, RunLock
from localdpo.records.series import (
    BUILD,
    EVALUATION,
    RoundResult,
    RoundsDir,
    SeriesDir,
    SeriesOptions,
    SeriesRecord,
    read_options,
    read_record,
    why_end,
    write_options,
    write_record,
)

ROUNDS: Final = 3
Note = Callable[[str], None]
# Plans and runs `prefs build` or `eval`: options, plan_..., run_...; what the last returns.
Ask = Callable[[Any, Callable[[Any], Any], Callable[..., dict[str, Any]]], dict[str, Any]]


@dataclass(frozen=True)
class Hands:
    """How a command carries out the parts of a round.

    Attributes:
        ask: a build or an evaluation.
        train: a run to its end; an exit code other than 0 ends the series there.
        note: one line for people.
        on_round: called with the record after each round.
    """

    ask: Ask
    train: Callable[[RunDir], int]
    note: Note
    on_round: Callable[[SeriesRecord], None] = lambda record: None


@dataclass(frozen=True)
class RoundsPlan:
    """A recipe of rounds that was looked at: nothing that it names is missing.

    Attributes:
        held_out: the prompts of the evaluations.
        options: of the command; fields of a JudgeRequest that change nothing of what is asked.
    """

    recipe: Recipe
    held_out: Sequence[PromptRow]
    options: SeriesOptions = field(default_factory=SeriesOptions)

    @property
    def max_usd(self) -> float | None:
        """The most that may be spent on the judge."""
        return self.options.judging.get("max_usd")

    @property
    def judging(self) -> dict[str, Any]:
        """The fields of a JudgeRequest."""
        settings = self.recipe.rounds
        return {
            "judge": settings.judge,
            "rubrics": settings.rubrics or (),
            "constitution": settings.constitution,
            "scores": settings.scores,
            **self.options.judging,
        }


def plan_rounds(recipe: Recipe, options: SeriesOptions | None = None) -> RoundsPlan:
    """Look at what the rounds of a recipe need. Loads no model.

    Raises UserError for a recipe without rounds.prompts or held-out prompts, for prompts that are among the
    held-out ones, and for an unknown judge.
    """
    settings = recipe.rounds
    if settings.prompts is None:
        raise UserError("rounds.prompts: missing; name the prompts that every round answers")
    if recipe.loss.spec.data != "pairs":
        raise UserError(f"loss.type: rounds train on pairs; {recipe.loss.spec.name} does not")
    sources = [] if recipe.eval.prompts is None else [HeldOut(recipe.eval.prompts)]
    if not sources and recipe.data.valid is None:
        raise UserError("eval.prompts: missing; name held-out prompts to evaluate the rounds on")
    held_out = prompts_of(sources or valid_sources(recipe), settings.held_out, set())
    every = prompts_of([*sources, *valid_sources(recipe)], None, set())
    _refuse_held_out(prompts_of([HeldOut(settings.prompts)], settings.limit, set()), every)
    plan = RoundsPlan(recipe, held_out, options or SeriesOptions())
    if judge_spec(JudgeRequest(**plan.judging), held_out) is None:
        raise UserError("rounds.judge: missing; name one, such as mlx:MODEL, anthropic or openai:URL#MODEL")
    return plan


def _refuse_held_out(prompts: Sequence[PromptRow], held_out: Sequence[PromptRow]) -> None:
    """Raise UserError for prompts that are held-out ones, but for spaces and capitals."""
    known = {_words(row) for row in held_out}
    if shared := [row for row in prompts if _words(row) in known]:
        raise UserError(
            f"rounds.prompts: has {counted(len(shared), 'prompt')} that the evaluation holds out, "
            f"the first {shared[0].text[:60]!r}; take them out of one of the two (`prefs split` parts a file)"
        )


def _words(row: PromptRow) -> str:
    return " ".join(conversation_text(row.prompt).casefold().split())


def wanted_rounds(known: RunDir | None, given: int | None) -> int:
    """Rounds at most: what a command says, else what the one before it did. Raises UserError for damage."""
    before = read_record(known).wanted if isinstance(known, RoundsDir) else 0
    return given or before or ROUNDS


def kept_options(known: RunDir | None, *, forget: bool = False) -> SeriesOptions:
    """The options that a series goes on with; none for a new one, and for one whose options are to be
    forgotten.

    Raises UserError for a damaged file, for one with options that this version does not take, and where there
    is nothing to forget.
    """
    if forget:
        if known is None:
            raise UserError("--forget-options: there is no series yet that has options; leave it out")
        return SeriesOptions()
    options = read_options(known)
    known_names = _require_types.__annotations__.keys() | JudgeOptions.__annotations__.keys()
    problems: Sequence[str] = [f"{name}: unknown" for name in options.judging if name not in known_names]
    try:
        if not problems:
            _require_types(jobs=options.jobs, best_by=options.best_by, **options.judging)
    except UserErrors as error:
        problems = error.lines
    if problems:
        assert isinstance(known, SeriesDir)
        raise UserError(f"{known.options}: {'; '.join(problems)}; remove the file and give the options again")
    return options


@checked
def _require_types(
    *,
    jobs: Count | None = None,
    best_by: str | None = None,
    prompts: str | None = None,
    limit: Count | None = None,
    max_tokens: Count | None = None,
    **judging: Unpack[JudgeOptions],
) -> None:
    """Raise UserErrors where the options of a series are not of these types."""


def preview_lines(plan: RoundsPlan, series: Path, wanted: int) -> list[str]:
    """What each round generates, asks and costs at most. Writes nothing and asks nobody."""
    recipe, rows = plan.recipe, plan.held_out
    options = _build_options(plan, RunDir(series / "round-1"), recipe.adapter, 1)
    # After round 1: base, the round before, the round, the first start.
    models = 3 if recipe.adapter is None else 4
    rates = [f"{learning_rate_of(recipe, number):g}" for number in (1, wanted)]
    falls = "" if rates[0] == rates[1] else f", with learning rates from {rates[0]} down to {rates[1]}"
    return [
        f"rounds: at most {wanted}{falls}; each:",
        *build_preview(plan_build(options)),
        *evaluation_lines(plan.judging, rows, models, recipe.rounds.max_tokens, series),
    ]


def evaluation_lines(
    judging: Mapping[str, Any], rows: Sequence[PromptRow], models: int, max_tokens: int, folder: Path
) -> list[str]:
    """What an evaluation of so many models asks and costs at most, before any of them has answered.

    `judging`: fields of a JudgeRequest, which must name a judge.
    """
    judges = judges_of(judging, rows)
    assert judges.pairs is not None
    # The run's own models are all compared with each other; a fourth is with one of them.
    duels = {2: 1, 3: 3, 4: 4}[models]
    # No two alike, as a question that was asked before is not asked again.
    longest = [longest_text(str(i), max_tokens) for i in range(models)]
    versus = list(combinations(longest, 2))[:duels]
    pairs = [question_about(row, *texts) for texts in versus for row in rows]
    singles = [question_about(row, text) for text in longest for row in rows]
    asked = judges.questions(pairs, singles)
    return [
        f"evaluation: {counted(len(rows), 'held-out prompt')}, {counted(models, 'model')}",
        *cost_lines(JudgeRequest(**judging), judges.pairs.name, asked, folder, known=False),
    ]


def judges_of(judging: Mapping[str, Any], rows: Sequence[PromptRow]) -> Judges:
    """The judges of an evaluation, by fields of a JudgeRequest. Raises UserError for what does not fit."""
    request = JudgeRequest(**judging)
    spec = judge_spec(request, rows)
    assert spec is not None
    return make_judges(request, spec, MODES if wants_scores(request, spec) else MODES[:1])


def run_rounds(series: RoundsDir, plan: RoundsPlan, wanted: int, hands: Hands) -> tuple[SeriesRecord, int]:
    """Go on with a series until it ends or a training does not; its record, and the exit code.

    Raises UserError as `prefs build` and `eval` do, and when another process makes the series.
    """
    with RunLock(series):
        series.clean()
        write_options(series, plan.options)
        record = read_record(series)
        while True:
            settings = plan.recipe.rounds
            ended = why_end(record.rounds, wanted, settings.max_kl, settings.patience)
            if (record.wanted, record.ended) != (wanted, ended):
                record = SeriesRecord(wanted, record.rounds, ended)
                write_record(series, record)
            if ended is not None:
                return record, 0
            number = len(record.rounds) + 1
            _require_place(series.round(number))
            text = dump_recipe(round_recipe(series, plan.recipe, number))
            run = RunDir.create(series.path, series.round(number).name, text, differing_keys)
            try:
                code = _train_round(plan, run, number, hands)
            except NoPairs as error:
                if not record.rounds:
                    raise
                # Nothing is left to learn from: mostly, the judge calls all answers of the last policy equal.
                record = SeriesRecord(wanted, record.rounds, error.message)
                write_record(series, record)
                return record, 0
            if code:
                return record, code
            result = _evaluate_round(plan, run, number, hands)
            record = SeriesRecord(wanted, (*record.rounds, result))
            write_record(series, record)
            hands.on_round(record)


def _require_place(run: RunDir) -> None:
    """Raise UserError for a round that was begun before its series was renamed, copied or moved: its recipe
    names the policy that it starts from, and its pairs, where they were."""
    if run.exists():
        named = Path(load_recipe(run.recipe).data.train_sources[0].source).absolute()
        if named != (run.path / BUILD / TRAIN).absolute():
            raise UserError(
                f"{run.path}: begun as {named.parent.parent}, where its recipe looks for its parts; give the "
                "series that place again, or remove this folder to make the round anew"
            )


def round_recipe(series: RoundsDir, recipe: Recipe, number: int) -> Recipe:
    """The recipe of a round: the series' own, from the last policy on, with the round's pairs to train on.

    Raises UserError when the round before has no intact checkpoint.
    """
    update: dict[str, Any] = {"rounds": RoundsSection()}
    if number > 1:
        before = require_checkpoint(series.round(number - 1), lambda line: None)
        update |= {"adapter": str(before.path), "reference_adapter": None}
        if recipe.rounds.reference == "first" and recipe.loss.spec.needs_reference:
            update["reference_adapter"] = recipe.reference or BASE
        rate = learning_rate_of(recipe, number)
        update["train"] = recipe.train.model_copy(update={"learning_rate": rate})
    data = recipe.data
    update["data"] = data.model_copy(
        update={
            "train": str(series.round(number).path / BUILD / TRAIN),
            "valid": tuple(
                DataSource(**{**entry.model_dump(), "format": entry.format or data.format})
                for entry in data.valid_sources
            )
            or None,
            "format": None,
            "limit": None,
        }
    )
    return recipe.model_copy(update=update)


def learning_rate_of(recipe: Recipe, number: int) -> float:
    """The peak learning rate of the round `number`, from 1."""
    return recipe.train.learning_rate * recipe.rounds.learning_rate_decay ** (number - 1)


def _build_options(plan: RoundsPlan, run: RunDir, adapter: str | None, number: int) -> BuildOptions:
    """What `prefs build` is to do in a round: its answers come from the policy that the round starts from."""
    recipe, settings, train = plan.recipe, plan.recipe.rounds, plan.recipe.train
    assert settings.prompts is not None
    judging = plan.judging
    if settings.n > 2:
        # Of more than two answers scores decide; the rubric for pairs is for the evaluation.
        judging["rubrics"] = tuple(
            name for mode, name in rubrics_by_mode(judging["rubrics"]).items() if mode == "score"
        )
    return BuildOptions(
        prompts=settings.prompts,
        out=run.path / BUILD,
        source=CandidateSource(
            recipe.model,
            adapter,
            recipe.data.template,
            Limits(train.max_length, train.max_prompt_length, train.truncation),
            recipe.trust_remote_code,
            recipe.data.chat_template_kwargs,
        ),
        n=settings.n,
        temperatures=(settings.temperature,),
        max_tokens=settings.max_tokens,
        min_words=settings.min_words,
        missing_eos_penalty=settings.missing_eos_penalty,
        seed=train.seed + number - 1,
        limit=settings.limit,
        valid_fraction=0.0,
        **judging,
    )


def _train_round(plan: RoundsPlan, run: RunDir, number: int, hands: Hands) -> int:
    """Build the round's pairs and train on them, as far as that is not done; the training's exit code."""
    build = run.path / BUILD
    if not ((build / TRAIN).exists() and (build / REPORT).exists()):
        hands.note(f"{run.name}: answers and verdicts")
        adapter = load_recipe(run.recipe).adapter
        hands.ask(_build_options(plan, run, adapter, number), plan_build, run_build)
        give_back_memory()  # to the worker
    if run.is_running():
        hands.note(f"{run.path} is being trained already; waiting for its end")
        for _ in watch(run):
            pass
    if run.status() == "finished":
        return 0
    hands.note(f"{run.name}: training")
    return hands.train(run)


def _evaluate_round(plan: RoundsPlan, run: RunDir, number: int, hands: Hands) -> RoundResult:
    """Evaluate the round's policy on the held-out prompts, as far as that is not done."""
    recipe, settings = plan.recipe, plan.recipe.rounds
    options = EvalOptions(
        run=run,
        prompts=recipe.eval.prompts,
        limit=settings.held_out,
        sampling=Sampling(settings.max_tokens, 1.0, recipe.train.seed),
        checks=None if settings.checks is None else Path(settings.checks),
        name=EVALUATION,
        first=recipe.adapter if number > 1 else None,
        **plan.judging,
    )
    path = run.evaluations / f"{EVALUATION}.json"
    if not path.exists():
        hands.note(f"{run.name}: evaluation")
        hands.ask(options, plan_evaluation, run_evaluation)
    evaluation = read_evaluation(path)
    before, after = evaluation.versus
    first = "base" if recipe.adapter is None else "sft"
    kl, kl_se = _kl_from(plan_evaluation(options), after, first)
    give_back_memory()
    tokens = next(metric.means for metric in evaluation.metrics if metric.name == "tokens")
    with_pairs = (run.path / BUILD / TRAIN).read_bytes().count(b"\n")
    return RoundResult(
        run.name,
        with_pairs,
        _rate(evaluation, after, before),
        _rate(evaluation, after, first),
        kl,
        kl_se,
        tokens[after] or 0.0,
        tokens[first] or 0.0,
    )


def _rate(evaluation: Evaluation, first: str, second: str) -> RateEstimate | None:
    """The win rate of one model against another; None without a verdict."""
    duels = (duel for duel in evaluation.duels if (duel.first, duel.second) == (first, second))
    return next((duel.win_rate for duel in duels), None)


def _kl_from(plan: EvaluationPlan, policy: str, reference: str) -> tuple[float, float | None]:
    """KL(policy || reference) of whole responses in nats and its standard error, from the policy's own
    answers of an evaluation, which were sampled at temperature 1.
    """
    asked, run = plan.asked, plan.options.run
    answers = answer_all(
        run, asked.contestants, asked.prompts, asked.sampling, scores=False, source=asked.source
    )[policy]
    both = [contestant for contestant in asked.contestants if contestant.name in (policy, reference)]
    means = mean_logps(run, both, asked.prompts, answers)
    ratios = [
        len(answer.ids) * (under_policy - under_reference)
        for answer, under_policy, under_reference in zip(
            answers, means[policy], means[reference], strict=True
        )
    ]
    kl, error = sequence_kl(ratios)
    return round(kl, 6), rounded(error)
