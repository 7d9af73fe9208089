"""The judges by name, in one table; and from a command's judge options to judges, a preview and a session.

    rules                       the demo's incident reports: format, severity, action, facts
    constraints                 what can be checked of an answer, in the column `constraints` of its prompt
    mlx:MODEL                   a local model, in this process
    anthropic[:MODEL]           Claude; the newest Opus by default
    openai:URL#MODEL            any OpenAI-compatible server
    human                       the votes of people
    jury:anthropic+mlx:MODEL    several; majority of choices, median of scores

A judge's module is loaded when it is asked for, so that naming one costs nothing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypedDict

from localdpo.core.errors import UserError
from localdpo.core.text import counted
from localdpo.judging.base import Effort, Judge, Question, both_orders
from localdpo.judging.cost import Budget, flat_price, load_prices
from localdpo.judging.panel import ConstitutionJudge, Jury, Principles
from localdpo.judging.rubric import DEFAULTS, Mode, Rubric, load_constitution, load_rubric, rubrics_by_mode
from localdpo.judging.run import Journal, JudgeSession, OnVerdict, OnWait, preview
from localdpo.judging.without_model import (
    CONSTRAINTS,
    RULES,
    ConstraintsJudge,
    HumanJudge,
    RulesJudge,
    judges_all,
    refuse_others,
)
from localdpo.recipe.arguments import Amount, Count
from localdpo.records.answers import AnswerRecord

if TYPE_CHECKING:
    from localdpo.data.prompts import PromptRow


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """What a person asked for about the judge: the judge options of `localdpo eval` and `prefs build`.

    Attributes:
        judge: as `make_judge` takes it; None is rules for the demo's prompts, else nobody.
        rubrics: shipped names or paths, at most one for pairs and one for scores.
        constitution: a shipped name or a path, instead of the rubrics.
        principles: one principle a question, or all of them.
        scores: whether single answers are scored, too; None is the default of `wants_scores`.
        batch: ask Claude in Message Batches.
        concurrency: questions at a time; None is the judge's own default.
        judge_tokens: longest reply of a judge behind a server; None is the judge's own default.
        effort: how much Claude thinks; None is the model's own default.
        prices: a file on top of the shipped prices.
        price: of the judge's model, as `flat_price` takes it, whatever the tables say.
        max_usd: the most that may be spent; None is no limit.
        votes: the file that the votes of people are read from.
    """

    judge: str | None = None
    rubrics: Sequence[str] = ()
    constitution: str | None = None
    principles: Principles = "sample"
    scores: bool | None = None
    batch: bool = False
    concurrency: Count | None = None
    judge_tokens: Count | None = None
    effort: Effort | None = None
    prices: str | os.PathLike[str] | None = None
    price: str | None = None
    max_usd: Amount | None = None
    votes: Path | None = None


class JudgeOptions(TypedDict, total=False):
    """The fields of JudgeRequest, but for `votes`, as keywords of the functions of the Python API."""

    judge: str | None
    rubrics: Sequence[str]
    constitution: str | None
    principles: Principles
    scores: bool | None
    batch: bool
    concurrency: Count | None
    judge_tokens: Count | None
    effort: Effort | None
    prices: str | os.PathLike[str] | None
    price: str | None
    max_usd: Amount | None


# Questions by who is asked.
Asked = Sequence[tuple[Judge, Sequence[Question]]]
Build = Callable[[str, Rubric, JudgeRequest], Judge]


@dataclass(frozen=True, slots=True)
class JudgeKind:
    """One kind of judge.

    Attributes:
        form: how it is written, for people.
        build: from the text after the colon, the rubric and the options.
        reads_rubric: whether a rubric or a constitution changes anything.
        has_price: whether its answers may cost money.
    """

    form: str
    build: Build
    reads_rubric: bool = True
    has_price: bool = False


def make_judge(spec: str, request: JudgeRequest | None = None, mode: Mode = "pairwise") -> Judge:
    """The judge that `spec` names, of two answers or one. Nothing is asked and no key is read yet.

    Raises UserError for a name, rubric or option that does not fit.
    """
    request = request or JudgeRequest()
    name, _, rest = spec.partition(":")
    if name == "jury":
        return _jury(rest, request, mode)
    entry = JUDGES.get(name)
    if entry is None:
        known = ", ".join([*(entry.form for entry in JUDGES.values()), "jury:ONE+OTHER"])
        raise UserError(f"{spec}: no such judge; expected one of {known}")
    if rest and entry.form == name:
        raise UserError(f"{spec}: expected {name} alone")
    if not entry.reads_rubric and (request.rubrics or request.constitution):
        raise UserError(f"{spec}: this judge reads no rubric and no constitution; leave them out")
    if request.batch and name != "anthropic":
        raise UserError(f"{spec}: only anthropic can be asked in batches")
    if request.effort is not None and name != "anthropic":
        raise UserError(f"{spec}: only anthropic takes an effort; leave --effort out")
    if request.price is not None and not entry.has_price:
        raise UserError(f"{spec}: this judge costs nothing; leave --price out")
    if request.constitution is None:
        rubric = load_rubric(rubrics_by_mode(request.rubrics).get(mode, DEFAULTS[mode]))
        return entry.build(rest, rubric, request)
    if request.rubrics:
        raise UserError("give a rubric or a constitution, not both")
    constitution = load_constitution(request.constitution)
    return ConstitutionJudge(
        constitution, mode, request.principles, lambda rubric: entry.build(rest, rubric, request)
    )


def _jury(rest: str, request: JudgeRequest, mode: Mode) -> Judge:
    names = [name.strip() for name in rest.split("+")]
    if len(names) < 2 or not all(names):
        raise UserError(f"jury:{rest}: expected two judges or more, joined by +")
    if any(name.startswith("jury:") for name in names):
        raise UserError(f"jury:{rest}: a jury cannot sit in a jury; name the judges themselves")
    if request.price is not None and sum(_has_price(name) for name in names) != 1:
        raise UserError(
            f"jury:{rest}: --price is of one judge; give prices of several in a file for --prices"
        )
    return Jury([make_judge(name, _for_member(name, request), mode) for name in names])


def _for_member(name: str, request: JudgeRequest) -> JudgeRequest:
    """The options that this member of a jury can read; the others are for its other members."""
    kind = name.partition(":")[0]
    entry = JUDGES.get(kind)
    if entry is not None and not entry.reads_rubric:
        request = replace(request, rubrics=(), constitution=None)
    is_claude = kind == "anthropic"
    return replace(
        request,
        batch=request.batch and is_claude,
        effort=request.effort if is_claude else None,
        price=request.price if _has_price(name) else None,
    )


def _has_price(name: str) -> bool:
    entry = JUDGES.get(name.partition(":")[0])
    return entry is not None and entry.has_price


def _limits(request: JudgeRequest) -> dict[str, Any]:
    """What a judge behind a server takes beside its rubric, table of prices and model."""
    return {
        "max_tokens": request.judge_tokens,
        "concurrency": request.concurrency,
        "price": None if request.price is None else flat_price(request.price),
    }


def _mlx(rest: str, rubric: Rubric, request: JudgeRequest) -> Judge:
    from localdpo.judging.mlx import MlxJudge

    if not rest:
        raise UserError("mlx: expected mlx:MODEL, a folder or hub id")
    return MlxJudge(rest, rubric)


def _human(rest: str, rubric: Rubric, request: JudgeRequest) -> Judge:
    if request.votes is None:
        raise UserError("human: expected a file of votes; vote in the comparison first")
    return HumanJudge(request.votes)


def _anthropic(rest: str, rubric: Rubric, request: JudgeRequest) -> Judge:
    from localdpo.judging.anthropic import AnthropicJudge
    from localdpo.judging.anthropic_batch import AnthropicBatchJudge

    kind = AnthropicBatchJudge if request.batch else AnthropicJudge
    return kind(rubric, load_prices(request.prices), rest or None, effort=request.effort, **_limits(request))


def _openai(rest: str, rubric: Rubric, request: JudgeRequest) -> Judge:
    from localdpo.judging.openai import OpenAIJudge

    url, _, model = rest.partition("#")
    if not url or not model:
        raise UserError(
            f"openai:{rest}: expected openai:URL#MODEL, as in openai:http://127.0.0.1:8080/v1#name"
        )
    return OpenAIJudge(rubric, load_prices(request.prices), url, model, **_limits(request))


JUDGES: Final[dict[str, JudgeKind]] = {
    RULES: JudgeKind(RULES, lambda rest, rubric, request: RulesJudge(), reads_rubric=False),
    CONSTRAINTS: JudgeKind(CONSTRAINTS, lambda rest, rubric, request: ConstraintsJudge(), reads_rubric=False),
    "mlx": JudgeKind("mlx:MODEL", _mlx),
    "anthropic": JudgeKind("anthropic[:MODEL]", _anthropic, has_price=True),
    "openai": JudgeKind("openai:URL#MODEL", _openai, has_price=True),
    "human": JudgeKind("human", _human, reads_rubric=False),
}


# --- the judges of a command ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judges:
    """Who compares two answers, and who scores one. None: nobody is asked that."""

    pairs: Judge | None = None
    scores: Judge | None = None

    def find_keys(self) -> None:
        """Raise JudgeStopped if a key is missing; for commands whose first question comes late."""
        for judge in (self.pairs, self.scores):
            if judge is not None:
                judge.find_key()

    def questions(self, pairs: Sequence[Question], singles: Sequence[Question]) -> Asked:
        """What is asked about these pairs, in both orders, and single answers, by judge."""
        asked = ((self.pairs, both_orders(pairs)), (self.scores, singles))
        return [(judge, questions) for judge, questions in asked if judge is not None]


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


def judge_spec(request: JudgeRequest, rows: Sequence[PromptRow]) -> str | None:
    """The judge of these prompts; None without one. Raises UserError(s) for one that cannot judge them."""
    spec = request.judge or (RULES if judges_all(row.facts for row in rows) else None)
    refuse_others(spec or "", rows)
    return spec


def wants_scores(request: JudgeRequest, spec: str) -> bool:
    """Whether single answers are scored: on request, with a rubric for it, or where it is free."""
    if request.scores is not None:
        return request.scores
    return spec in (RULES, CONSTRAINTS) or "score" in rubrics_by_mode(request.rubrics)


def make_judges(request: JudgeRequest, spec: str, modes: Iterable[Mode]) -> Judges:
    """The judges that `spec` names, for these modes. Raises UserError as `make_judge` does."""
    judges = {mode: make_judge(spec, request, mode) for mode in modes}
    return Judges(judges.get("pairwise"), judges.get("score"))


@contextmanager
def judge_session(
    request: JudgeRequest,
    path: Path,
    questions: Asked,
    *,
    budget: Budget | None = None,
    hooks: Hooks,
) -> Iterator[JudgeSession]:
    """A session to ask these questions in, within the request's limits.

    Its journal is at `path`. If verdicts cost money, it is on the disk after every one, and no other session
    may ask beside it: UserError.
    """
    if hooks.on_questions is not None:
        hooks.on_questions(sum(len(to_ask) for _, to_ask in questions))
    costs = any(judge.worst_case_usd(question) > 0 for judge, to_ask in questions for question in to_ask[:1])
    with Journal(path, sync=costs, exclusive=costs) as journal:
        yield JudgeSession(
            journal=journal,
            budget=budget or Budget(request.max_usd),
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
    from localdpo.judging.remote import RemoteJudge

    with Journal(journal) if known and journal.is_file() else nullcontext() as opened:
        previews = [preview(judge, to_ask, opened) for judge, to_ask in questions]
    count, cached = sum(each.questions for each in previews), sum(each.cached for each in previews)
    usd = sum(each.worst_usd for each in previews)
    unknown = "an amount that is not known (no price for this model; give it with --price IN,OUT)"
    price = unknown if usd == math.inf else f"${usd:.2f}"
    basis = "" if known else ", were every answer as long as it may be"
    leaves = [leaf for judge, to_ask in questions for first in to_ask[:1] for leaf in judge.leaves(first)]
    prices = [leaf.price for leaf in leaves if isinstance(leaf, RemoteJudge)]
    if days := {price.date for price in prices if price is not None and price.date is not None}:
        basis += f", by prices of {' and '.join(sorted(days))}"
    lines = [
        f"judge: {name}, at most {counted(count, 'question')} to ask, {cached:,} answered already",
        f"cost: at most {price}{basis}",
    ]
    return lines if request.max_usd is None else [*lines, f"limit: ${request.max_usd:.2f}"]
