"""The judges by name: one table, each entry with how it is written and how it is built.

    rules                       the demo's incident reports: format, severity, action, facts
    mlx:MODEL                   a local model, in this process
    anthropic[:MODEL]           Claude; the newest Opus by default
    openai:URL#MODEL            any OpenAI-compatible server
    human                       the votes of people
    jury:anthropic+mlx:MODEL    several; majority of choices, median of scores

A judge's module is loaded when it is asked for, so that naming one costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from localdpo.core.errors import UserError
from localdpo.judging.base import Judge
from localdpo.judging.cost import load_prices
from localdpo.judging.panel import ConstitutionJudge, Jury, Principles
from localdpo.judging.rubric import DEFAULTS, Mode, Rubric, load_constitution, load_rubric


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
    from localdpo.judging.rules import RulesJudge

    _nothing_after(rest, "rules")
    return RulesJudge()


def _mlx(rest: str, rubric: Rubric, options: JudgeOptions) -> Judge:
    from localdpo.judging.mlx import MlxJudge

    if not rest:
        raise UserError("mlx: expected mlx:MODEL, a folder or hub id")
    return MlxJudge(rest, rubric)


def _human(rest: str, rubric: Rubric, options: JudgeOptions) -> Judge:
    from localdpo.judging.human import HumanJudge

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
