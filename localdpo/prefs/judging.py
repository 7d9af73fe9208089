"""The judge's part of a build: which candidates it is asked about, and the pairs that its verdicts make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING

from localdpo.data.encode import IDENTICAL, Encoder
from localdpo.data.types import Example
from localdpo.data.types import Pair as TokenPair
from localdpo.evals.evaluate import conversation_text
from localdpo.judging.base import Judge, Question, Verdict
from localdpo.judging.pairwise import Pair, collect, questions_of
from localdpo.judging.runner import Asking
from localdpo.prefs.build_rows import Asked, Built
from localdpo.prefs.candidates import REVISION
from localdpo.prefs.selection import (
    NOT_REVISED,
    SAME_WHEN_CUT,
    TOO_FEW,
    Chosen,
    by_choice,
    by_scores,
    usable,
    with_scores,
)
from localdpo.prefs.settings import end_ids
from localdpo.records.answers import AnswerRecord

if TYPE_CHECKING:
    from localdpo.prefs.build_plan import Plan

Answers = Sequence[Mapping[str, AnswerRecord]]


@dataclass
class Outcome:
    """What came of a build.

    Attributes:
        built: pairs in the order of the prompts.
        pairs: prompts without a pair, by reason. candidates: answers that were not judged, by reason.
        verdicts: every verdict that was used, in order; `flips` and `ties` are those of `pairs`.
        scores: of each candidate's name, the scores it got.
    """

    built: list[Built] = field(default_factory=list)
    pairs: Counter[str] = field(default_factory=Counter)
    candidates: Counter[str] = field(default_factory=Counter)
    verdicts: list[Verdict] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)


def judge_all(plan: Plan, answers: Answers, asking: Asking) -> Outcome:
    """Ask the judge about every prompt's usable candidates, and make the pairs.

    Raises JudgeStopped; what was answered is in the journal then.
    """
    outcome = Outcome()
    ready = screen(plan, answers, outcome)
    if plan.paired:
        _compare(plan, answers, ready, asking, outcome)
    else:
        _score(plan, answers, ready, asking, outcome)
    return outcome


def screen(plan: Plan, answers: Answers, outcome: Outcome) -> dict[int, list[str]]:
    """The candidates of each prompt that are judged, by name; the others are counted in `outcome`."""
    ready: dict[int, list[str]] = {}
    kept = [usable(of_prompt) for of_prompt in answers]
    twins = _same_when_cut(plan, answers, [names for names, _ in kept])
    for i, (names, dropped) in enumerate(kept):
        for name in twins.get(i, {}):
            names.remove(name)
            dropped[twins[i][name]] += 1
        outcome.candidates += dropped
        if len(names) > 1:
            ready[i] = names
        else:
            outcome.pairs[next(iter(dropped)) if plan.paired else TOO_FEW] += 1
    return ready


def _same_when_cut(plan: Plan, answers: Answers, names: Sequence[Sequence[str]]) -> dict[int, dict[str, str]]:
    """Per prompt, the candidates that training would not tell from an earlier one, and why."""
    limits = plan.options.source.limits
    if limits is None:
        return {}
    keys = [(i, pair) for i, of_prompt in enumerate(names) for pair in combinations(of_prompt, 2)]
    examples: list[tuple[int, Example]] = [
        (
            number,
            TokenPair(
                plan.prompts[i].prompt,
                answers[i][one].text,
                answers[i][other].text,
                tools=plan.prompts[i].tools,
                template_kwargs=plan.prompts[i].template_kwargs,
            ),
        )
        for number, (i, (one, other)) in enumerate(keys)
    ]
    source = plan.options.source
    encoded = Encoder(
        plan.tokenizer,
        source.template,
        limits,
        end_ids=end_ids(plan.tokenizer),
        template_kwargs=source.template_kwargs,
    ).encode(examples)
    found: dict[int, dict[str, str]] = {}
    for reason, numbers in encoded.dropped.items():
        for number in numbers:
            i, (_, other) = keys[number]
            same = reason.startswith(IDENTICAL)
            found.setdefault(i, {})[other] = SAME_WHEN_CUT if same else reason
    return found


def questions_of_build(plan: Plan, answers: Answers) -> Iterator[tuple[Judge, list[Question]]]:
    """Everything that may be asked about these candidates, by judge."""
    ready = screen(plan, answers, Outcome())
    if plan.judges.pairs is not None:
        yield plan.judges.pairs, questions_of(_pairs(plan, answers, ready))
    if plan.judges.scores is not None:
        yield plan.judges.scores, [_question(plan, answers, i, name) for i, name in _single(ready)]


def _single(ready: Mapping[int, Sequence[str]]) -> list[tuple[int, str]]:
    return [(i, name) for i, names in ready.items() for name in names]


def _pairs(plan: Plan, answers: Answers, ready: Mapping[int, Sequence[str]]) -> list[Pair]:
    return [
        Pair(
            plan.prompts[i].id,
            conversation_text(plan.prompts[i].prompt),
            (answers[i][one].text, answers[i][other].text),
            plan.facts[i],
        )
        for i, (one, other) in ready.items()
    ]


def _question(plan: Plan, answers: Answers, i: int, name: str) -> Question:
    row = plan.prompts[i]
    return Question(row.id, conversation_text(row.prompt), (answers[i][name].text,), plan.facts[i])


def _compare(
    plan: Plan, answers: Answers, ready: Mapping[int, Sequence[str]], asking: Asking, outcome: Outcome
) -> None:
    """Two answers: both orders, and scores of the pairs that stand if they are wanted."""
    judge = plan.judges.pairs
    assert judge is not None
    pairs = _pairs(plan, answers, ready)
    verdicts = asking.ask(judge, questions_of(pairs))
    outcome.verdicts += verdicts
    standing: list[Built] = []
    for (i, (one, other)), verdict in zip(ready.items(), collect(pairs, verdicts), strict=True):
        found = by_choice(i, (one, other), verdict)
        if isinstance(found, Chosen) and found.rejected == REVISION:
            found = NOT_REVISED
        if isinstance(found, str):
            outcome.pairs[found] += 1
        else:
            asked = (Asked((one, other), verdict.first), Asked((other, one), verdict.second))
            standing.append(Built(found, asked))
    outcome.built = (
        standing if plan.judges.scores is None else _scored(plan, answers, standing, asking, outcome)
    )


def _scored(
    plan: Plan, answers: Answers, standing: Sequence[Built], asking: Asking, outcome: Outcome
) -> list[Built]:
    """The pairs with the scores of their answers; those that the scores contradict are dropped."""
    sides = {built.pair.prompt: [built.pair.chosen, built.pair.rejected] for built in standing}
    verdicts = _ask_scores(plan, answers, sides, asking, outcome)
    kept = []
    for built in standing:
        pair = built.pair
        names = (pair.chosen, pair.rejected)
        two = [verdicts[pair.prompt, name] for name in names]
        found = with_scores(pair, *two)
        if isinstance(found, str):
            outcome.pairs[found] += 1
        else:
            scored = (Asked((name,), verdict) for name, verdict in zip(names, two, strict=True))
            kept.append(Built(found, (*built.asked, *scored)))
    return kept


def _score(
    plan: Plan, answers: Answers, ready: Mapping[int, Sequence[str]], asking: Asking, outcome: Outcome
) -> None:
    """More than two answers: every one is scored, and the scores make the pair."""
    verdicts = _ask_scores(plan, answers, ready, asking, outcome)
    for i, names in ready.items():
        found = by_scores(i, {name: verdicts[i, name].score for name in names})
        if isinstance(found, str):
            outcome.pairs[found] += 1
        else:
            outcome.built.append(Built(found, tuple(Asked((name,), verdicts[i, name]) for name in names)))


def _ask_scores(
    plan: Plan, answers: Answers, names: Mapping[int, Sequence[str]], asking: Asking, outcome: Outcome
) -> dict[tuple[int, str], Verdict]:
    judge = plan.judges.scores
    assert judge is not None
    single = _single(names)
    verdicts = asking.ask(judge, [_question(plan, answers, i, name) for i, name in single])
    outcome.verdicts += verdicts
    for (_, name), verdict in zip(single, verdicts, strict=True):
        if verdict.score is not None:
            outcome.scores.setdefault(name, []).append(verdict.score)
    return dict(zip(single, verdicts, strict=True))
