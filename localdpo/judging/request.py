"""From the judge options of a command to judges, a preview of the cost, and a session to ask them in."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localdpo.judging.base import Judge, Question
from localdpo.judging.cost import Budget
from localdpo.judging.journal import Journal
from localdpo.judging.panel import Principles
from localdpo.judging.registry import JudgeOptions, make_judge
from localdpo.judging.rubric import Mode, rubrics_by_mode
from localdpo.judging.rules import NAME as RULES
from localdpo.judging.rules import judges_all, refuse_others
from localdpo.judging.run import JudgeSession, OnVerdict, OnWait, Retry, preview
from localdpo.records.answers import AnswerRecord


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
