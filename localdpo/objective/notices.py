"""What a person who watches a run should know, as pure functions of the metrics' history.

Standard library only. A record is (step, metrics) with the metrics' names as in the event log; a value that
was not finite is None there. Each rule looks at the newest records and returns the level and message of its
notice, or None; `new_notices` returns what the newest record of a history adds.

Thresholds without a source beside them are choices of this project, made to stay silent on healthy runs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from localdpo.core.text import counted
from localdpo.objective.registry import DataKind

Record = tuple[int, Mapping[str, float | None]]
Level = Literal["info", "warning", "critical"]
SEVERITY: Mapping[str, int] = {"info": 0, "warning": 1, "critical": 2}

# How many records back a rule looks for figures that are not in every record (kl).
LOOK_BACK = 1000


@dataclass(frozen=True)
class RunFacts:
    """What the history does not contain: counts from the recipe and the data, and the machine's memory."""

    pairs_per_step: int
    pairs_per_eval: int
    total_steps: int
    warmup_steps: int = 0
    memory_limit_gb: float | None = None


@dataclass(frozen=True)
class RunNotice:
    """What was seen (`message`), what it means (`why`) and what helps (`try_`)."""

    name: str
    level: Level
    step: int
    message: str
    why: str
    try_: str

    def fields(self) -> dict[str, str]:
        """The fields of a `notice` event; the step is the event's own."""
        fields = {"level": self.level, "name": self.name, "message": self.message}
        return fields | {"why": self.why, "try": self.try_}


@dataclass(frozen=True)
class History:
    """The records of a run up to now, oldest first."""

    facts: RunFacts
    train: Sequence[Record]
    evals: Sequence[Record]

    @property
    def last_step(self) -> int:
        return max((records[-1][0] for records in (self.train, self.evals) if records), default=0)


# The level and the message of a notice.
Sighting = tuple[Level, str]
Look = Callable[[History], Sighting | None]


def values_of(records: Sequence[Record], name: str, count: int) -> list[float]:
    """The last `count` finite values of `name`, oldest first; fewer where there are fewer."""
    newest = (metrics.get(name) for _, metrics in reversed(records[-LOOK_BACK:]))
    finite = (value for value in newest if value is not None and math.isfinite(value))
    return list(islice(finite, count))[::-1]


ON_PAIRS: tuple[DataKind, ...] = ("pairs",)
WITH_REFERENCE: tuple[DataKind, ...] = ("pairs", "unpaired")
ON_EVERYTHING: tuple[DataKind, ...] = ("pairs", "unpaired", "demonstrations")


@dataclass(frozen=True)
class NoticeRule:
    """A notice; called with the function that decides whether a history raises it, it enters it into RULES.

    Attributes:
        levels: those that it can have. when: what raises it, for the documentation.
        why, try_: as in RunNotice.
        data: the kinds of rows that it can be said of. What a pair's two responses do to each other, or
            whether one of them is ranked right, cannot be said of single responses.
    """

    name: str
    levels: tuple[Level, ...]
    when: str
    why: str
    try_: str
    data: tuple[DataKind, ...] = ON_PAIRS

    def __call__(self, look: Look) -> Look:
        RULES[self] = look
        return look


RULES: dict[NoticeRule, Look] = {}


def rises(values: Sequence[float]) -> bool:
    """Whether the newer half of a window lies above the older half, by their means."""
    half = len(values) // 2
    return statistics.fmean(values[half:]) > statistics.fmean(values[:half])


# --- numbers that run away: NaN, KL, displacement -----------------------------------------------------------

# A KL figure is a spike against the median of what came before it: 3 times for a warning, 10 times for
# critical, in 5 logs in a row, so that one odd batch is no alarm.
KL_WARNING_RATIO = 3.0
KL_CRITICAL_RATIO = 10.0
KL_LOGS_IN_A_ROW = 5
KL_MEDIAN_LOGS = 20
KL_MEDIAN_LOGS_MIN = 5
KL_FLOOR = 0.1  # nats per token; KL starts at 0, where any growth is a large multiple
# Likelihood displacement (Razin et al. 2024, arXiv 2410.08847). Past 0.1 nat per token the chosen responses
# are about 10% less likely in every token.
DISPLACEMENT_WINDOW = 20
DISPLACEMENT_INFO = 0.03  # nats per token below the reference
DISPLACEMENT_WARNING = 0.1


@NoticeRule(
    "nan",
    ("critical",),
    when="a metric is not finite",
    why="A NaN or an infinity in the loss or the gradient spreads to every weight at the next update; "
    "nothing after this step is of use.",
    try_="Resume from the last checkpoint with a lower train.learning_rate or train.max_grad_norm; if it is "
    "there at the first step, look at the row of that batch.",
    data=WITH_REFERENCE,
)
def not_finite(history: History) -> Sighting | None:
    for records, where in ((history.train, "in training"), (history.evals, "in the evaluation")):
        if not records:
            continue
        step, metrics = records[-1]
        bad = [name for name, value in metrics.items() if value is None or not math.isfinite(value)]
        if bad:
            return "critical", f"{', '.join(bad)} not finite {where} at step {step}"
    return None


@NoticeRule(
    "kl-spike",
    ("warning", "critical"),
    when="the KL is more than 3 (10) times its median, in 5 logs in a row",
    why="The policy is leaving the reference fast. Rewards keep growing out there while answers get worse, "
    "because the data says nothing about such text.",
    try_="Lower train.learning_rate or raise loss.beta, and compare the policy's answers with those of the "
    "reference (localdpo compare).",
    data=WITH_REFERENCE,
)
def kl_spike(history: History) -> Sighting | None:
    values = values_of(history.train, "kl", KL_MEDIAN_LOGS + KL_LOGS_IN_A_ROW)
    before, last = values[:-KL_LOGS_IN_A_ROW], values[-KL_LOGS_IN_A_ROW:]
    if len(before) < KL_MEDIAN_LOGS_MIN or min(last) <= KL_FLOOR:
        return None
    median = statistics.median(before)
    if min(last) <= KL_WARNING_RATIO * median:
        return None
    return (
        "critical" if min(last) > KL_CRITICAL_RATIO * median else "warning",
        f"KL to the reference at {last[-1]:.3g} nats per token, median before {median:.3g}",
    )


@NoticeRule(
    "displacement",
    ("info", "warning"),
    when="the margin grows while chosen answers become less likely than under the reference",
    why="The margin grows because rejected responses fall faster than chosen ones. The probability that "
    "both lose goes to other text, which no pair has judged.",
    try_="Lower train.learning_rate, raise loss.beta, or take a loss that holds the chosen response up "
    "(dpop, apo_zero, nca_pair, or an SFT term).",
)
def displacement(history: History) -> Sighting | None:
    chosen = values_of(history.train, "logratio_per_token/chosen", DISPLACEMENT_WINDOW)
    margins = values_of(history.train, "rewards/margins", DISPLACEMENT_WINDOW)
    if len(chosen) < DISPLACEMENT_WINDOW or len(margins) < DISPLACEMENT_WINDOW:
        return None
    fall = -statistics.fmean(chosen[DISPLACEMENT_WINDOW // 2 :])
    falling_while_margin_rises = not rises(chosen) and rises(margins)
    if fall < DISPLACEMENT_INFO or (fall < DISPLACEMENT_WARNING and not falling_while_margin_rises):
        return None
    return (
        "warning" if fall >= DISPLACEMENT_WARNING else "info",
        f"Chosen responses {fall:.2g} nats per token less likely than under the reference",
    )


# --- what is learnt: nothing, the opposite, the pairs by heart, or length -----------------------------------

# Chance is 0.5 +- 2 standard deviations of a share of n fair coins, sqrt(0.25 / n).
ACCURACY_SIGMAS = 2.0
ACCURACY_PAIRS_MIN = 400  # training pairs in the window: chance is then 0.45 to 0.55
ACCURACY_EVALS = 3
ACCURACY_RUN_SHARE = 0.25  # of the steps after warm-up must be done: before, nobody can have learnt much
MEMORISED_WINDOW = 20
MEMORISED_ACCURACY = 0.99
MEMORISED_LOSS_SHARE = 0.1  # of the first loss, the one at policy = reference
MEMORISED_RUN_SHARE = 0.5  # "early": before half of the steps
GROWTH_RATIO = 1.5
GROWTH_TOKENS = 8.0
GROWTH_EVALS = 2


def _score(metrics: Mapping[str, float | None]) -> float | None:
    """Accuracy with a tie as half a point: at policy = reference all pairs tie, which is chance."""
    accuracy, ties = metrics.get("rewards/accuracies"), metrics.get("rewards/ties", 0.0)
    if accuracy is None or ties is None or not math.isfinite(accuracy + ties):
        return None
    return accuracy + 0.5 * ties


def _seen(history: History, is_so: Callable[[float, float], bool], running: int) -> str | None:
    """Where the score is so, as `is_so` says of a score and how far chance goes: over the newest steps that
    hold ACCURACY_PAIRS_MIN pairs, or in that many evaluations running. Nobody is judged before warm-up and a
    share of the steps after it are done.
    """
    facts = history.facts
    after_warmup = max(facts.total_steps - facts.warmup_steps, 0)
    start = facts.warmup_steps + math.ceil(ACCURACY_RUN_SHARE * after_warmup)
    steps = math.ceil(ACCURACY_PAIRS_MIN / facts.pairs_per_step)
    window = [_score(metrics) for step, metrics in history.train[-steps:] if step > facts.warmup_steps]
    scores = [score for score in window if score is not None]
    if history.train and history.train[-1][0] >= start and len(scores) == steps:
        score, pairs = statistics.fmean(scores), steps * facts.pairs_per_step
        if is_so(score, _chance_width(pairs)):
            return f"{score:.2f} over the last {counted(pairs, 'training pair')}"
    window = [_score(metrics) for step, metrics in history.evals[-ACCURACY_EVALS:] if step >= max(start, 1)]
    scores = [score for score in window if score is not None][-running:]
    if len(scores) == running and all(is_so(score, _chance_width(facts.pairs_per_eval)) for score in scores):
        where = f"in evaluation {running} times running" if running > 1 else "in the evaluation"
        return f"{scores[-1]:.2f} {where} ({counted(facts.pairs_per_eval, 'pair')})"
    return None


def _chance_width(pairs: int) -> float:
    return ACCURACY_SIGMAS * math.sqrt(0.25 / max(pairs, 1))


@NoticeRule(
    "accuracy-stuck",
    ("warning",),
    when="the reward accuracy stays at chance well after warm-up",
    why="The policy distinguishes chosen from rejected responses no better than a coin.",
    try_="Read a few pairs (localdpo inspect): is the difference one that this model can see? Then try a "
    "higher train.learning_rate or more steps.",
)
def accuracy_stuck(history: History) -> Sighting | None:
    seen = _seen(history, lambda score, width: abs(score - 0.5) <= width, ACCURACY_EVALS)
    return (
        None if seen is None else ("warning", f"Reward accuracy cannot be distinguished from chance: {seen}")
    )


@NoticeRule(
    "labels-swapped",
    ("warning",),
    when="the reward accuracy is below chance",
    why="The policy prefers the rejected responses more often than chance allows: chosen and rejected may "
    "be swapped in the training or in the validation data.",
    try_="Read one pair of data.train and one of data.valid with --dry-run and check which response is meant "
    "to win.",
)
def labels_swapped(history: History) -> Sighting | None:
    seen = _seen(history, lambda score, width: score < 0.5 - width, 1)
    return None if seen is None else ("warning", f"Reward accuracy clearly below one half: {seen}")


@NoticeRule(
    "memorised",
    ("warning",),
    when="training accuracy is near 1 and the loss near 0 before half of the steps",
    why="The training pairs are already ranked almost perfectly: they are memorised, or something simple "
    "(length, format) gives them away. What follows mostly pushes the policy further from the "
    "reference.",
    try_="Stop here or lower train.max_steps, and compare with the held-out accuracy; look for a feature "
    "that all chosen responses share.",
)
def memorised(history: History) -> Sighting | None:
    losses = values_of(history.train, "loss", MEMORISED_WINDOW)
    accuracies = values_of(history.train, "rewards/accuracies", MEMORISED_WINDOW)
    if len(losses) < MEMORISED_WINDOW or len(accuracies) < MEMORISED_WINDOW:
        return None
    first = history.train[0][1].get("loss")
    if first is None or history.last_step > MEMORISED_RUN_SHARE * history.facts.total_steps:
        return None
    loss, accuracy = statistics.fmean(losses), statistics.fmean(accuracies)
    if accuracy < MEMORISED_ACCURACY or loss > MEMORISED_LOSS_SHARE * first:
        return None
    held_out = values_of(history.evals, "rewards/accuracies", 1)
    compare = f", {held_out[0]:.2f} on held-out pairs" if held_out else ""
    return "warning", f"Training accuracy {accuracy:.2f} and loss {loss:.3g} before half of the run{compare}"


@NoticeRule(
    "responses-growing",
    ("warning",),
    when="sampled answers have become 1.5 times as long",
    why="Training easily learns that longer is better where chosen responses are longer than rejected ones.",
    try_="Compare the lengths of chosen and rejected responses with --dry-run; on pairs, a per-token loss "
    "(sigmoid_norm, simpo) or r_dpo takes length out.",
    data=WITH_REFERENCE,
)
def responses_growing(history: History) -> Sighting | None:
    lengths = values_of(history.evals, "samples/response_tokens", len(history.evals))
    if len(lengths) < 1 + GROWTH_EVALS:
        return None
    first, last = lengths[0], lengths[-GROWTH_EVALS:]
    if min(last) < max(GROWTH_RATIO * first, first + GROWTH_TOKENS):
        return None
    return "warning", f"Sampled responses at {last[-1]:.0f} tokens on average, {first:.0f} before training"


# --- the machine: memory that is nearly full, and steps that have become slow -------------------------------

MEMORY_SHARE = 0.9
# Steps differ in length with their rows, so medians are compared; the first steps trace and warm up.
SPEED_WINDOW = 32
SPEED_SKIP = 8
SPEED_LOST = 0.3


@NoticeRule(
    "memory",
    ("warning",),
    when="memory in use is above 90% of the limit",
    why="Beyond this the system swaps, which makes steps many times slower, or ends the run.",
    try_="Start a new run with a lower train.micro_batch_size or train.max_length, or with "
    "train.gradient_checkpointing=true.",
    data=ON_EVERYTHING,
)
def memory_nearly_full(history: History) -> Sighting | None:
    limit = history.facts.memory_limit_gb
    held = values_of(history.train, "memory_gb", 1) or values_of(history.train, "peak_memory_gb", 1)
    if limit is None or not held or held[0] <= MEMORY_SHARE * limit:
        return None
    return "warning", f"Memory with cache {held[0]:.1f} GB of {limit:.1f} GB"


@NoticeRule(
    "slower",
    ("info",),
    when="tokens per second fell by 30%",
    why="The same work takes longer: another program uses the machine, it is hot and throttled, or it swaps.",
    try_="Look at the memory chart and at other programs; training itself is not affected.",
    data=ON_EVERYTHING,
)
def slower(history: History) -> Sighting | None:
    """The newest steps' tokens per second against the best stretch of as many steps before them."""
    if len(history.train) < SPEED_SKIP + 2 * SPEED_WINDOW:
        return None
    speeds = values_of(history.train[SPEED_SKIP:], "tokens_per_second", 4 * SPEED_WINDOW)
    if len(speeds) < 2 * SPEED_WINDOW:
        return None
    now = statistics.median(speeds[-SPEED_WINDOW:])
    earlier = [
        statistics.median(speeds[start : start + SPEED_WINDOW])
        for start in range(0, len(speeds) - 2 * SPEED_WINDOW + 1, SPEED_WINDOW // 2)
    ]
    if now >= (1.0 - SPEED_LOST) * max(earlier):
        return None
    return "info", f"{now:.0f} tokens a second, {max(earlier):.0f} before"


def new_notices(
    raised: Collection[tuple[str, str]],
    train: Sequence[Record],
    evals: Sequence[Record],
    facts: RunFacts,
    data: DataKind = "pairs",
) -> list[RunNotice]:
    """What the newest record adds, by the rules for rows of the kind `data`; call it after each one.

    `raised`: (name, level) of the notices so far. A name is raised again only at a higher level than before.
    """
    highest: dict[str, int] = {}
    for name, level in raised:
        highest[name] = max(highest.get(name, -1), SEVERITY[level])
    history = History(facts, train, evals)
    notices = []
    for rule, look in RULES.items():
        seen = look(history) if data in rule.data else None
        if seen is not None and SEVERITY[seen[0]] > highest.get(rule.name, -1):
            notices.append(RunNotice(rule.name, seen[0], history.last_step, seen[1], rule.why, rule.try_))
    return notices
