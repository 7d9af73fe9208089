"""The judges by name, in one table; and from a command's judge options to judges, a preview and a session.

    rules                       the demo's incident reports: format, severity, action, facts
    mlx:MODEL                   a local model, in this process
    anthropic[:MODEL]           Claude; the newest Opus by default
    openai:URL#MODEL            any OpenAI-compatible server
    human                       the votes of people
    jury:anthropic+mlx:MODEL    several; majority of choices, median of scores

A judge's module is loaded when it is asked for, so that naming one costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from localdpo.core.errors import UserError
from localdpo.judging.base import Judge, Question
from localdpo.judging.cost import Budget, load_prices
from localdpo.judging.panel import ConstitutionJudge, Jury, Principles
from localdpo.judging.rubric import DEFAULTS, Mode, Rubric, load_constitution, load_rubric, rubrics_by_mode
from localdpo.judging.run import Journal, JudgeSession, OnVerdict, OnWait, Retry, preview
from localdpo.judging.without_model import RULES, HumanJudge, RulesJudge, judges_all, refuse_others
from localdpo.records.answers import AnswerRecord


@dataclass(frozen=True, slots=True)
class JudgeOptions:
    """What a judge is built with; each reads what it knows.

    Attributes:
        mode: two answers compared ("pairwise") or one scored ("score").
        rubric: a shipped name or a path; by default the one of the mode.
        constitution: a shipped name or a path, instead of the rubric.
        principles: one principle a question, or all of them.
        batch: ask Claude in Message Batches.
        concurrency, max_tokens: None is the judge's own default.
        prices: a file on top of the shipped prices.
        votes: the file that the votes of people are read from.
    """

    mode: Mode = "pairwise"
    rubric: str | None = None
    constitution: str | None = None
    principles: Principles = "sample"
    batch: bool = False
    concurrency: int | None = None
    max_tokens: int | None = None
    prices: Path | None = None
    votes: Path | None = None


Build = Callable[[str, Rubric, JudgeOptions], Judge]


@dataclass(frozen=True, slots=True)
class JudgeKind:
    """One kind of judge.

    Attributes:
        form: how it is written, for people.
        build: from the text after the colon, the rubric and the options.
        reads_rubric: whether a rubric or a constitution changes anything.
    """

    form: str
    build: Build
    reads_rubric: bool = True


def make_judge(spec: str, options: JudgeOptions | None = None) -> Judge:
    """The judge that `spec` names. Nothing is asked and no key is read yet.

    Raises UserError for a name, rubric or option that does not fit.
    """
    options = options or JudgeOptions()
    name, _, rest = spec.partition(":")
    if name == "jury":
        return _jury(rest, options)
    entry = JUDGES.get(name)
    if entry is None:
        known = ", ".join([*(entry.form for entry in JUDGES.values()), "jury:ONE+OTHER"])
        raise UserError(f"{spec}: no such judge; expected one of {known}")
    if not entry.reads_rubric and (options.rubric or options.constitution):
        raise UserError(f"{spec}: this judge reads no rubric and no constitution; leave them out")
    if options.batch and name != "anthropic":
        raise UserError(f"{spec}: only anthropic can be asked in batches")
    if options.constitution is None:
        return entry.build(rest, _rubric(options), options)
    if options.rubric is not None:
        raise UserError("give a rubric or a constitution, not both")
    constitution = load_constitution(options.constitution)
    return ConstitutionJudge(
        constitution, options.mode, options.principles, lambda rubric: entry.build(rest, rubric, options)
    )


def _rubric(options: JudgeOptions) -> Rubric:
    rubric = load_rubric(options.rubric or DEFAULTS[options.mode])
    if rubric.mode != options.mode:
        raise UserError(f"rubric {rubric.name} is for mode {rubric.mode}, expected one for {options.mode}")
    return rubric


def _jury(rest: str, options: JudgeOptions) -> Judge:
    names = [name.strip() for name in rest.split("+")]
    if len(names) < 2 or not all(names):
        raise UserError(f"jury:{rest}: expected two judges or more, joined by +")
    if any(name.startswith("jury:") for name in names):
        raise UserError(f"jury:{rest}: a jury cannot sit in a jury; name the judges themselves")
    return Jury([make_judge(name, _for_member(name, options)) for name in names])


def _for_member(name: str, options: JudgeOptions) -> JudgeOptions:
    """The options of a jury that this member can read; the others are for its other members."""
    kind = name.partition(":")[0]
    entry = JUDGES.get(kind)
    if entry is not None and not entry.reads_rubric:
        options = replace(options, rubric=None, constitution=None)
    return replace(options, batch=options.batch and kind == "anthropic")


def _nothing_after(rest: str, name: str) -> None:
    if rest:
        raise UserError(f"{name}:{rest}: expected {name} alone")


def _rules(rest: str, rubric: Rubric, options: JudgeOptions) -> Judge:
    _nothing_after(rest, "rules")
    return RulesJudge()


def _mlx(rest: str, rubric: Rubric, options: JudgeOptions) -> Judge:
    from localdpo.judging.mlx import MlxJudge

    if not rest:
        raise UserError("mlx: expected mlx:MODEL, a folder or hub id")
    return MlxJudge(rest, rubric)


def _human(rest: str, rubric: Rubric, options: JudgeOptions) -> Judge:
    _nothing_after(rest, "human")
    if options.votes is None:
        raise UserError("human: expected a file of votes; vote in the comparison first")
    return HumanJudge(options.votes)


def _anthropic(rest: str, rubric: Rubric, options: JudgeOptions) -> Judge:
    from localdpo.judging.anthropic import AnthropicJudge
    from localdpo.judging.anthropic_batch import AnthropicBatchJudge

    kind = AnthropicBatchJudge if options.batch else AnthropicJudge
    limits = {"max_tokens": options.max_tokens, "concurrency": options.concurrency}
    return kind(rubric, load_prices(options.prices), rest or None, **limits)


def _openai(rest: str, rubric: Rubric, options: JudgeOptions) -> Judge:
    from localdpo.judging.openai import OpenAIJudge

    url, _, model = rest.partition("#")
    if not url or not model:
        raise UserError(
            f"openai:{rest}: expected openai:URL#MODEL, as in openai:http://127.0.0.1:8080/v1#name"
        )
    limits = {"max_tokens": options.max_tokens, "concurrency": options.concurrency}
    return OpenAIJudge(rubric, load_prices(options.prices), url, model, **limits)


JUDGES: Final[dict[str, JudgeKind]] = {
    "rules": JudgeKind("rules", _rules, reads_rubric=False),
    "mlx": JudgeKind("mlx:MODEL", _mlx),
    "anthropic": JudgeKind("anthropic[:MODEL]", _anthropic),
    "openai": JudgeKind("openai:URL#MODEL", _openai),
    "human": JudgeKind("human", _human, reads_rubric=False),
}


# --- the judges of a command ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """What a person asked for about the judge: the judge options of `localdpo eval` and `prefs build`.

    Attributes:
        judge: as `make_judge` takes it; None is rules for the demo's prompts, else nobody.
        rubrics: at most one for pairs and one for scores.
        scores: whether single answers are scored, too; None is the default of `wants_scores`.
        judge_tokens: longest reply of a judge behind a server; None is the judge's own default.
        max_usd: the most that may be spent; None is no limit.

    The others are as in JudgeOptions.
    """

    judge: str | None = None
    rubrics: tuple[str, ...] = ()
    constitution: str | None = None
    principles: Principles = "sample"
    scores: bool | None = None
    batch: bool = False
    concurrency: int | None = None
    judge_tokens: int | None = None
    prices: Path | None = None
    max_usd: float | None = None


@dataclass(frozen=True)
class Judges:
    """Who compares two answers, and who scores one. None: nobody is asked that."""

    pairs: Judge | None = None
    scores: Judge | None = None


@dataclass(frozen=True)
class Hooks:
    """What a command that generates and judges calls while it works.

    `on_answer`: for each answer, first those that were there already. `on_questions`: once, with how many
    verdicts there will be at most. `on_verdict`: for each verdict, those of the journal too. `on_wait`:
    seconds and reason before each wait, from any thread.
    """

    on_answer: Callable[[AnswerRecord], None] | None = None
    on_questions: Callable[[int], None] | None = None
    on_verdict: OnVerdict | None = None
    on_wait: OnWait | None = None


def judge_spec(request: JudgeRequest, facts: Sequence[Mapping[str, Any]]) -> str | None:
    """The judge of prompts with these other columns; None without one. Raises UserError for a wrong one."""
    spec = request.judge or (RULES if judges_all(facts) else None)
    refuse_others(spec or "", facts)
    return spec


def wants_scores(request: JudgeRequest, spec: str) -> bool:
    """Whether single answers are scored: on request, with a rubric for it, or where it is free."""
    if request.scores is not None:
        return request.scores
    return spec == RULES or "score" in rubrics_by_mode(request.rubrics)


def make_judges(
    request: JudgeRequest, spec: str, modes: Iterable[Mode], *, votes: Path | None = None
) -> Judges:
    """The judges that `spec` names, for these modes. Raises UserError as `make_judge` does."""
    rubrics = rubrics_by_mode(request.rubrics)
    judges = {
        mode: make_judge(
            spec,
            JudgeOptions(
                mode=mode,
                rubric=rubrics.get(mode),
                constitution=request.constitution,
                principles=request.principles,
                batch=request.batch,
                concurrency=request.concurrency,
                max_tokens=request.judge_tokens,
                prices=request.prices,
                votes=votes,
            ),
        )
        for mode in modes
    }
    return Judges(judges.get("pairwise"), judges.get("score"))


# Questions by who is asked.
Asked = Iterable[tuple[Judge, Sequence[Question]]]


def open_journal(path: Path, questions: Asked) -> Journal:
    """The journal to ask these questions with; on the disk after every verdict if verdicts cost money."""
    costs = any(judge.worst_case_usd(one) > 0 for judge, to_ask in questions for one in to_ask[:1])
    return Journal(path, sync=costs)


def judge_session(
    request: JudgeRequest,
    journal: Journal | None,
    *,
    budget: Budget | None = None,
    retry: Retry | None = None,
    hooks: Hooks,
) -> JudgeSession:
    """A session within the request's limits."""
    return JudgeSession(
        journal=journal,
        budget=budget or Budget(request.max_usd),
        retry=retry,
        concurrency=request.concurrency,
        on_verdict=hooks.on_verdict,
        on_wait=hooks.on_wait,
    )


def cost_lines(request: JudgeRequest, name: str, questions: Asked, journal: Path, known: bool) -> list[str]:
    """What a judge would be asked, and the most that it can cost, for `--dry-run`. Asks nobody.

    Args:
        name: of the judge.
        known: whether the answers in `questions` are those that will be judged, or stand-ins of the greatest
            length, in which case the journal holds none of them.
    """
    opened = Journal(journal) if known and journal.is_file() else None
    try:
        previews = [preview(judge, to_ask, opened) for judge, to_ask in questions]
    finally:
        if opened is not None:
            opened.close()
    count, cached = sum(each.questions for each in previews), sum(each.cached for each in previews)
    usd = sum(each.worst_usd for each in previews)
    price = "an amount that is not known (no price for this model)" if usd == math.inf else f"${usd:.2f}"
    basis = "" if known else ", were every answer as long as it may be"
    lines = [
        f"judge: {name}, at most {count:,} questions to ask, {cached:,} answered already",
        f"cost: at most {price}{basis}",
    ]
    return lines if request.max_usd is None else [*lines, f"limit: ${request.max_usd:.2f}"]
