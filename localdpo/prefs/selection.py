"""From candidates and verdicts to pairs: which candidates are judged, and which two of them make a pair."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
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
# What a tokenizer decodes the first bytes of a character to.
_INCOMPLETE: Final = "\ufffd"
SHORT: Final = "shorter than the least number of words"
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
CUT_PREFERRED: Final = "the judge prefers the answer that was cut"
CUT_NOT_BELOW: Final = "no answer that ended has the higher score"


@dataclass(frozen=True, slots=True)
class UsedVerdict:
    """One verdict that a pair rests on: the names of the answers in the order they were asked in."""

    names: tuple[str, ...]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class BuiltPair:
    """Two candidates of a prompt, by name. The chosen one ended.

    Attributes:
        scores: of the chosen and the rejected one, if they have any; less the penalty of one that was cut.
        used: every verdict about the prompt's answers.
    """

    prompt: int
    chosen: str
    rejected: str
    scores: tuple[float, float] | None = None
    used: tuple[UsedVerdict, ...] = ()


def text_of(answer: AnswerRecord) -> str:
    """The text of a candidate, without the character that the limit of tokens cut in two."""
    return answer.text if answer.finished else answer.text.rstrip(_INCOMPLETE)


def usable(
    answers: Mapping[str, AnswerRecord], min_words: int = 1, *, cut: bool = False
) -> tuple[list[str], Counter[str]]:
    """The candidates of one prompt that can be judged, by name in their order; the others by reason.

    Args:
        min_words: runs of characters between white space that an answer has at least.
        cut: whether answers that were cut at the limit of tokens can be.
    """
    kept: list[str] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for name, answer in answers.items():
        text = (text_of(answer) if cut else answer.text).strip()
        reason = None
        if not text:
            reason = EMPTY
        elif not (answer.finished or cut):
            reason = CUT
        elif len(text.split()) < min_words:
            reason = SHORT
        elif text in seen:
            reason = SAME
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add(text)
        kept.append(name)
    return kept, dropped


def by_choice(prompt: int, names: tuple[str, str], verdict: PairVerdict) -> BuiltPair | str:
    """The pair that two verdicts of two orders make of `names`, or why there is none."""
    if not verdict.valid:
        return NO_VERDICT
    if verdict.flipped:
        return FLIPPED
    if verdict.score == 0.5:
        return TIE
    first, second = names if verdict.score == 1.0 else names[::-1]
    return BuiltPair(prompt, first, second)


def against_cut(pair: BuiltPair | str, prompt: int, ended: str, cut: str, *, scored: bool) -> BuiltPair | str:
    """What a comparison of an answer that ended with one that was cut comes to.

    The one that was cut is never chosen, and a tie goes against it. Where the judge prefers it, the scores
    decide if both are `scored`: a comparison alone has nothing that a penalty could be taken from.
    """
    if pair == TIE or (isinstance(pair, BuiltPair) and (scored or pair.chosen == ended)):
        return BuiltPair(prompt, ended, cut)
    return CUT_PREFERRED if isinstance(pair, BuiltPair) else pair


def with_scores(
    pair: BuiltPair, chosen: Verdict, rejected: Verdict, penalty: float | None = None
) -> BuiltPair | str:
    """The pair with the scores of its answers, or why it is dropped: they must point the same way.

    `penalty`: what the score of a rejected answer loses that was cut.
    """
    if chosen.score is None or rejected.score is None:
        return UNSCORED
    low = rejected.score if penalty is None else rejected.score - penalty
    if chosen.score <= low:
        return CONTRADICTED if penalty is None else CUT_NOT_BELOW
    return replace(pair, scores=(chosen.score, low))


def by_scores(
    prompt: int,
    scores: Mapping[str, float | None],
    lengths: Mapping[str, int],
    penalties: Mapping[str, float] | None = None,
) -> BuiltPair | str:
    """The pair that scores make of candidates (name -> score, None without one), or why there is none.

    `lengths`: tokens of each candidate. `penalties`: of candidates that were cut, what their scores lose;
    they are never chosen.
    """
    cut = penalties or {}
    known = {
        name: score - cut[name] if name in cut else score
        for name, score in scores.items()
        if score is not None
    }
    if len(known) < 2:
        return UNSCORED
    names, values = list(known), list(known.values())
    indices = best_and_low(values, [lengths[name] for name in names], [name not in cut for name in names])
    if indices is None:
        return ALL_EQUAL if len(set(values)) == 1 else CUT_NOT_BELOW
    best, low = indices
    return BuiltPair(prompt, names[best], names[low], (values[best], values[low]))


def best_and_low(
    scores: Sequence[float], lengths: Sequence[int], ended: Sequence[bool] | None = None
) -> tuple[int, int] | None:
    """Indices of the best score and of the lower one nearest to mean - 2 sd; None if there is none lower.

    `ended`: which answers may be the best, as those may that ended; None: all.

    After arXiv 2502.16825: of many samples the very worst teaches less than one two (population) standard
    deviations below the mean; of two equally near the lower one is taken. Of equal scores those two are
    taken whose lengths differ least, since DPO also learns a difference in length (arXiv 2403.19159), and of
    these the first.
    """
    ended = ended or [True] * len(scores)
    best = max((score for score, has_end in zip(scores, ended, strict=True) if has_end), default=-math.inf)
    target = statistics.fmean(scores) - 2 * statistics.pstdev(scores)
    lower = [score for score in scores if score < best]
    if not lower:
        return None
    low = min(lower, key=lambda score: (abs(score - target), score))
    of_best, of_low = ([i for i, score in enumerate(scores) if score == wanted] for wanted in (best, low))
    of_best = [i for i in of_best if ended[i]]
    return min(product(of_best, of_low), key=lambda pair: abs(lengths[pair[0]] - lengths[pair[1]]))


# --- asking the judge ----------------------------------------------------------------------------------


@dataclass
class BuildOutcome:
    """What came of a build.

    Attributes:
        built: pairs in the order of the prompts.
        pairs: prompts without a pair, by reason. candidates: answers that were not judged, by reason.
        cut: answers that were cut and are judged.
        verdicts: every verdict that was used, in order.
        scores: of each candidate's name, the scores it got.
    """

    built: list[BuiltPair] = field(default_factory=list)
    pairs: Counter[str] = field(default_factory=Counter)
    candidates: Counter[str] = field(default_factory=Counter)
    cut: int = 0
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
        kept = [self._usable(of_prompt) for of_prompt in answers]
        twins = self._same_when_cut([names for names, _ in kept])
        for i, (names, dropped) in enumerate(kept):
            for name, reason in twins.get(i, {}).items():
                names.remove(name)
                dropped[reason] += 1
            self.outcome.candidates += dropped
            if len(names) > 1:
                self.ready[i] = names
                self.outcome.cut += len(self._cut(i))
            else:
                self.outcome.pairs[next(iter(dropped)) if plan.paired else TOO_FEW] += 1

    def _usable(self, answers: Mapping[str, AnswerRecord]) -> tuple[list[str], Counter[str]]:
        """The candidates of one prompt that can be judged, and the others by reason.

        Those that were cut can be with a penalty, beside one that may be chosen.
        """
        options = self.plan.options
        names, dropped = usable(answers, options.min_words, cut=options.missing_eos_penalty is not None)
        cut = [name for name in names if not answers[name].finished]
        ended = [name for name in names if name not in cut]
        if cut and not (REVISION in ended if options.revise else ended):
            dropped[CUT] += len(cut)
            return ended, dropped
        return names, dropped

    def _cut(self, i: int) -> list[str]:
        """The candidates of a prompt that are judged and were cut."""
        return [name for name in self.ready[i] if not self.answers[i][name].finished]

    def _same_when_cut(self, names: Sequence[Sequence[str]]) -> dict[int, dict[str, str]]:
        """Per prompt, the candidates that training would not tell from an earlier one, and why."""
        source = self.plan.options.source
        if source.limits is None:
            return {}
        # The later one goes; one that was cut before one that ended.
        keys = [
            (i, pair)
            for i, of_prompt in enumerate(names)
            for pair in combinations(
                sorted(of_prompt, key=lambda name: not self.answers[i][name].finished), 2
            )
        ]
        examples: list[tuple[int, Example]] = []
        for number, (i, (first, second)) in enumerate(keys):
            row, texts = self.plan.prompts[i], self.answers[i]
            pair = Pair(
                row.prompt,
                text_of(texts[first]),
                text_of(texts[second]),
                rejected_ended=texts[second].finished,
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
        if not self.plan.paired:
            self.outcome.built = self._best(session)
        elif self.plan.judges.scores is None:
            self.outcome.built = self._compared(session)
        else:
            self.outcome.built = self._scored(session, self._compared(session))
        return self.outcome

    def _question(self, i: int, *names: str) -> Question:
        return question_about(self.plan.prompts[i], *(text_of(self.answers[i][name]) for name in names))

    def _pairs(self) -> list[Question]:
        return [self._question(i, *names) for i, names in self.ready.items()]

    def _kept(self, pair: BuiltPair | str, used: Sequence[UsedVerdict]) -> list[BuiltPair]:
        """The pair, which rests on these verdicts too; nothing for the reason why there is none."""
        if isinstance(pair, str):
            self.outcome.pairs[pair] += 1
            return []
        return [replace(pair, used=(*pair.used, *used))]

    def _compared(self, session: JudgeSession) -> list[BuiltPair]:
        """The pairs of two answers that are compared in both orders."""
        assert self.plan.judges.pairs is not None
        pairs = self._pairs()
        verdicts = session.ask(self.plan.judges.pairs, both_orders(pairs))
        self.outcome.verdicts += verdicts
        built: list[BuiltPair] = []
        for (i, (first, second)), verdict in zip(self.ready.items(), collect(pairs, verdicts), strict=True):
            pair = by_choice(i, (first, second), verdict)
            if cut := self._cut(i):
                (ended,) = {first, second} - {*cut}
                pair = against_cut(pair, i, ended, *cut, scored=self.plan.judges.scores is not None)
            if isinstance(pair, BuiltPair) and pair.rejected == REVISION:
                pair = NOT_REVISED
            used = (UsedVerdict((first, second), verdict.first), UsedVerdict((second, first), verdict.second))
            built += self._kept(pair, used)
        return built

    def _scored(self, session: JudgeSession, built: Sequence[BuiltPair]) -> list[BuiltPair]:
        """The pairs with the scores of their answers; those that the scores contradict are dropped."""
        verdicts = self._ask_scores(session, {pair.prompt: [pair.chosen, pair.rejected] for pair in built})
        kept: list[BuiltPair] = []
        for pair in built:
            chosen, rejected = verdicts[pair.prompt]
            cut = pair.rejected in self._cut(pair.prompt)
            penalty = self.plan.options.missing_eos_penalty if cut else None
            found = with_scores(pair, chosen.verdict, rejected.verdict, penalty)
            kept += self._kept(found, (chosen, rejected))
        return kept

    def _best(self, session: JudgeSession) -> list[BuiltPair]:
        """More than two answers: every one is scored, and the scores make the pair."""
        built: list[BuiltPair] = []
        for i, used in self._ask_scores(session, self.ready).items():
            scores = {each.names[0]: each.verdict.score for each in used}
            lengths = {name: self.answers[i][name].tokens for name in scores}
            penalties = dict.fromkeys(self._cut(i), self.plan.options.missing_eos_penalty or 0.0)
            built += self._kept(by_scores(i, scores, lengths, penalties), used)
        return built

    def _ask_scores(
        self, session: JudgeSession, names: Mapping[int, Sequence[str]]
    ) -> dict[int, list[UsedVerdict]]:
        """The scores of some candidates of each prompt, in their order."""
        assert self.plan.judges.scores is not None
        singles = [(i, name) for i, of_prompt in names.items() for name in of_prompt]
        verdicts = session.ask(self.plan.judges.scores, [self._question(*single) for single in singles])
        self.outcome.verdicts += verdicts
        scored: dict[int, list[UsedVerdict]] = {i: [] for i in names}
        for (i, name), verdict in zip(singles, verdicts, strict=True):
            scored[i].append(UsedVerdict((name,), verdict))
            if verdict.score is not None:
                self.outcome.scores.setdefault(name, []).append(verdict.score)
        return scored
