"""From candidates and verdicts to pairs: which candidates are judged, and which two of them make a pair."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Final

from localdpo.data.encode import IDENTICAL, Encoder
from localdpo.data.types import Example, Pair
from localdpo.judging.base import PairVerdict, Question, both_orders, collect
from localdpo.judging.prompts import question_about
from localdpo.judging.registry import Asked
from localdpo.judging.run import JudgeSession
from localdpo.prefs.candidates import REVISION
from localdpo.prefs.settings import end_ids
from localdpo.records.answers import AnswerRecord
from localdpo.records.verdicts import Verdict

if TYPE_CHECKING:
    from localdpo.prefs.build_plan import BuildPlan

# The candidates of each prompt, by name.
Candidates = Sequence[Mapping[str, AnswerRecord]]

EMPTY: Final = "empty"
CUT: Final = "cut at the limit of tokens"
SAME: Final = "the same text as another"
SAME_WHEN_CUT: Final = "the same as another after truncation"
TOO_FEW: Final = "fewer than two usable answers"
NO_VERDICT: Final = "no verdict in one of the orders"
FLIPPED: Final = "the two orders disagree"
TIE: Final = "a tie in both orders"
CONTRADICTED: Final = "the scores do not say the same as the choice"
UNSCORED: Final = "fewer than two answers with a score"
ALL_EQUAL: Final = "all scores are equal"
NOT_REVISED: Final = "the judge prefers the answer before its revision"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Two candidates of a prompt, by name, and their scores if they have any."""

    prompt: int
    chosen: str
    rejected: str
    scores: tuple[float, float] | None = None


def usable(answers: Mapping[str, AnswerRecord]) -> tuple[list[str], Counter[str]]:
    """The candidates of one prompt that can be judged, by name in their order; the others by reason."""
    kept: list[str] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for name, answer in answers.items():
        text = answer.text.strip()
        reason = EMPTY if not text else CUT if not answer.finished else SAME if text in seen else None
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add(text)
        kept.append(name)
    return kept, dropped


def by_choice(prompt: int, names: tuple[str, str], verdict: PairVerdict) -> Chosen | str:
    """The pair that two verdicts of two orders make of `names`, or why there is none."""
    if not verdict.valid:
        return NO_VERDICT
    if verdict.flipped:
        return FLIPPED
    if verdict.score == 0.5:
        return TIE
    first, second = names if verdict.score == 1.0 else names[::-1]
    return Chosen(prompt, first, second)


def with_scores(pair: Chosen, chosen: Verdict, rejected: Verdict) -> Chosen | str:
    """The pair with the scores of its answers, or why it is dropped: they must point the same way."""
    if chosen.score is None or rejected.score is None:
        return UNSCORED
    if chosen.score <= rejected.score:
        return CONTRADICTED
    return Chosen(pair.prompt, pair.chosen, pair.rejected, (chosen.score, rejected.score))


def by_scores(prompt: int, scores: Mapping[str, float | None]) -> Chosen | str:
    """The pair that scores make of candidates (name -> score, None without one), or why there is none."""
    known = {name: score for name, score in scores.items() if score is not None}
    if len(known) < 2:
        return UNSCORED
    names, values = list(known), list(known.values())
    indices = best_and_low(values)
    if indices is None:
        return ALL_EQUAL
    best, low = indices
    return Chosen(prompt, names[best], names[low], (values[best], values[low]))


def best_and_low(scores: Sequence[float]) -> tuple[int, int] | None:
    """Indices of the best score and of the lower one nearest to mean - 2 sd; None if all are equal.

    After arXiv 2502.16825: of many samples the very worst teaches less than one two (population) standard
    deviations below the mean. Of equals the first is taken, of two equally near the lower one.
    """
    best = max(range(len(scores)), key=lambda i: (scores[i], -i))
    target = statistics.fmean(scores) - 2 * statistics.pstdev(scores)
    lower = [i for i, score in enumerate(scores) if score < scores[best]]
    if not lower:
        return None
    return best, min(lower, key=lambda i: (abs(scores[i] - target), scores[i], i))


def split_by_prompt(prompts: Sequence[str], wanted: int, seed: int) -> list[bool]:
    """For each pair, by the id of its prompt, whether it is held out; no prompt is on both sides.

    Prompts are taken in an order drawn by the seed, so that more pairs of other prompts change little; at
    most `wanted` pairs are held out, and exactly so many when no prompt comes twice.
    """
    pairs = Counter(prompts)
    held: set[str] = set()
    left = wanted
    for name in sorted(pairs, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest()):
        if pairs[name] <= left:
            held.add(name)
            left -= pairs[name]
    return [name in held for name in prompts]


# --- asking the judge ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class UsedVerdict:
    """One verdict that a pair rests on: the names of the answers in the order they were asked in."""

    names: tuple[str, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class BuiltPair:
    """A pair that is kept, and every verdict about its prompt's answers."""

    pair: Chosen
    used: tuple[UsedVerdict, ...]


@dataclass
class BuildOutcome:
    """What came of a build.

    Attributes:
        built: pairs in the order of the prompts.
        pairs: prompts without a pair, by reason. candidates: answers that were not judged, by reason.
        verdicts: every verdict that was used, in order.
        scores: of each candidate's name, the scores it got.
    """

    built: list[BuiltPair] = field(default_factory=list)
    pairs: Counter[str] = field(default_factory=Counter)
    candidates: Counter[str] = field(default_factory=Counter)
    verdicts: list[Verdict] = field(default_factory=list)
    scores: dict[str, list[float]] = field(default_factory=dict)


class CandidateJudging:
    """Which candidates of a build are judged, what is asked about them, and the pairs that come of it.

    Attributes:
        ready: the candidates of each prompt that are judged, by name.
        outcome: counts the others from the start; complete after `run`.
    """

    def __init__(self, plan: BuildPlan, answers: Candidates) -> None:
        self.plan, self.answers = plan, answers
        self.outcome = BuildOutcome()
        self.ready: dict[int, list[str]] = {}
        kept = [usable(of_prompt) for of_prompt in answers]
        twins = self._same_when_cut([names for names, _ in kept])
        for i, (names, dropped) in enumerate(kept):
            for name, reason in twins.get(i, {}).items():
                names.remove(name)
                dropped[reason] += 1
            self.outcome.candidates += dropped
            if len(names) > 1:
                self.ready[i] = names
            else:
                self.outcome.pairs[next(iter(dropped)) if plan.paired else TOO_FEW] += 1

    def _same_when_cut(self, names: Sequence[Sequence[str]]) -> dict[int, dict[str, str]]:
        """Per prompt, the candidates that training would not tell from an earlier one, and why."""
        source = self.plan.options.source
        if source.limits is None:
            return {}
        keys = [(i, pair) for i, of_prompt in enumerate(names) for pair in combinations(of_prompt, 2)]
        examples: list[tuple[int, Example]] = []
        for number, (i, (first, second)) in enumerate(keys):
            row, texts = self.plan.prompts[i], self.answers[i]
            pair = Pair(
                row.prompt,
                texts[first].text,
                texts[second].text,
                tools=row.tools,
                template_kwargs=row.template_kwargs,
            )
            examples.append((number, pair))
        encoded = Encoder(
            self.plan.tokenizer,
            source.template,
            source.limits,
            end_ids=end_ids(self.plan.tokenizer),
            template_kwargs=source.template_kwargs,
        ).encode(examples)
        twins: dict[int, dict[str, str]] = {}
        for reason, numbers in encoded.dropped.items():
            for number in numbers:
                i, (_, second) = keys[number]
                twins.setdefault(i, {})[second] = SAME_WHEN_CUT if reason.startswith(IDENTICAL) else reason
        return twins

    def questions(self) -> Asked:
        """Everything that may be asked about the candidates, by judge."""
        pairs = self._pairs() if self.plan.paired else []
        singles = [self._question(i, name) for i, names in self.ready.items() for name in names]
        return self.plan.judges.questions(pairs, singles)

    def run(self, session: JudgeSession) -> BuildOutcome:
        """Ask about every prompt's usable candidates, and make the pairs.

        Raises JudgeStopped; what was answered is in the journal then.
        """
        if self.plan.paired:
            self._compare(session)
        else:
            self._score_all(session)
        return self.outcome

    def _question(self, i: int, *names: str) -> Question:
        return question_about(self.plan.prompts[i], *(self.answers[i][name].text for name in names))

    def _pairs(self) -> list[Question]:
        return [self._question(i, *names) for i, names in self.ready.items()]

    def _compare(self, session: JudgeSession) -> None:
        """Two answers: both orders, and scores of the pairs that are left if they are wanted."""
        assert self.plan.judges.pairs is not None
        pairs = self._pairs()
        verdicts = session.ask(self.plan.judges.pairs, both_orders(pairs))
        self.outcome.verdicts += verdicts
        built: list[BuiltPair] = []
        for (i, (first, second)), verdict in zip(self.ready.items(), collect(pairs, verdicts), strict=True):
            chosen = by_choice(i, (first, second), verdict)
            if isinstance(chosen, Chosen) and chosen.rejected == REVISION:
                chosen = NOT_REVISED
            if isinstance(chosen, str):
                self.outcome.pairs[chosen] += 1
                continue
            used = (UsedVerdict((first, second), verdict.first), UsedVerdict((second, first), verdict.second))
            built.append(BuiltPair(chosen, used))
        self.outcome.built = built if self.plan.judges.scores is None else self._scored(session, built)

    def _scored(self, session: JudgeSession, built: Sequence[BuiltPair]) -> list[BuiltPair]:
        """The pairs with the scores of their answers; those that the scores contradict are dropped."""
        sides = {each.pair.prompt: [each.pair.chosen, each.pair.rejected] for each in built}
        verdicts = self._ask_scores(session, sides)
        kept = []
        for each in built:
            names = sides[each.pair.prompt]
            chosen, rejected = (verdicts[each.pair.prompt, name] for name in names)
            pair = with_scores(each.pair, chosen, rejected)
            if isinstance(pair, str):
                self.outcome.pairs[pair] += 1
            else:
                scored = (UsedVerdict((names[0],), chosen), UsedVerdict((names[1],), rejected))
                kept.append(BuiltPair(pair, (*each.used, *scored)))
        return kept

    def _score_all(self, session: JudgeSession) -> None:
        """More than two answers: every one is scored, and the scores make the pair."""
        verdicts = self._ask_scores(session, self.ready)
        for i, names in self.ready.items():
            chosen = by_scores(i, {name: verdicts[i, name].score for name in names})
            if isinstance(chosen, str):
                self.outcome.pairs[chosen] += 1
            else:
                used = tuple(UsedVerdict((name,), verdicts[i, name]) for name in names)
                self.outcome.built.append(BuiltPair(chosen, used))

    def _ask_scores(
        self, session: JudgeSession, names: Mapping[int, Sequence[str]]
    ) -> dict[tuple[int, str], Verdict]:
        assert self.plan.judges.scores is not None
        singles = [(i, name) for i, of_prompt in names.items() for name in of_prompt]
        verdicts = session.ask(self.plan.judges.scores, [self._question(*single) for single in singles])
        self.outcome.verdicts += verdicts
        for (_, name), verdict in zip(singles, verdicts, strict=True):
            if verdict.score is not None:
                self.outcome.scores.setdefault(name, []).append(verdict.score)
        return dict(zip(singles, verdicts, strict=True))
