"""Rules about what is learnt: nothing, the opposite, the pairs by heart, or length."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from localdpo.objective.notices.history import History, Notice, last_step, values_of

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


def _accuracy_from(history: History) -> int:
    """The step from which accuracy is judged: after warm-up and a share of the steps that follow it."""
    facts = history.facts
    return facts.warmup_steps + math.ceil(ACCURACY_RUN_SHARE * max(facts.total_steps - facts.warmup_steps, 0))


def _train_accuracy(history: History) -> tuple[float, int] | None:
    """(mean score, pairs) of the newest steps that hold ACCURACY_PAIRS_MIN pairs, all past warm-up."""
    wanted = math.ceil(ACCURACY_PAIRS_MIN / history.facts.pairs_per_step)
    if not history.train or history.train[-1][0] < _accuracy_from(history):
        return None
    window = [(step, _score(metrics)) for step, metrics in history.train[-wanted:]]
    scores = [score for step, score in window if score is not None and step > history.facts.warmup_steps]
    if len(scores) < wanted:
        return None
    return statistics.fmean(scores), wanted * history.facts.pairs_per_step


def _eval_accuracies(history: History) -> list[float]:
    """Scores of the newest evaluations that are late enough to be judged, oldest first."""
    start = max(_accuracy_from(history), 1)
    scores = [_score(metrics) for step, metrics in history.evals[-ACCURACY_EVALS:] if step >= start]
    return [score for score in scores if score is not None]


def _chance_width(pairs: int) -> float:
    return ACCURACY_SIGMAS * math.sqrt(0.25 / max(pairs, 1))


def accuracy_stuck(history: History) -> Notice | None:
    train, evals, facts = _train_accuracy(history), _eval_accuracies(history), history.facts
    if train is not None and abs(train[0] - 0.5) <= _chance_width(train[1]):
        seen = f"{train[0]:.2f} over the last {train[1]} training pairs"
    elif len(evals) == ACCURACY_EVALS and all(
        abs(score - 0.5) <= _chance_width(facts.pairs_per_eval) for score in evals
    ):
        seen = f"{evals[-1]:.2f} in evaluation {ACCURACY_EVALS} times running ({facts.pairs_per_eval} pairs)"
    else:
        return None
    return Notice(
        "accuracy-stuck",
        "warning",
        last_step(history),
        f"Reward accuracy not told from chance: {seen}",
        "The policy does not tell chosen from rejected responses better than a coin.",
        "Look at a few pairs with --dry-run: is the difference one that this model can see? Then try a "
        "higher train.learning_rate or more steps.",
    )


def labels_swapped(history: History) -> Notice | None:
    train, evals, facts = _train_accuracy(history), _eval_accuracies(history), history.facts
    if train is not None and train[0] < 0.5 - _chance_width(train[1]):
        seen = f"{train[0]:.2f} over the last {train[1]} training pairs"
    elif evals and evals[-1] < 0.5 - _chance_width(facts.pairs_per_eval):
        seen = f"{evals[-1]:.2f} on the {facts.pairs_per_eval} pairs of the evaluation"
    else:
        return None
    return Notice(
        "labels-swapped",
        "warning",
        last_step(history),
        f"Reward accuracy clearly below one half: {seen}",
        "The policy prefers the rejected responses more often than chance allows: chosen and rejected may "
        "be swapped in the training or in the validation data.",
        "Read one pair of data.train and one of data.valid with --dry-run and check which response is "
        "meant to win.",
    )


def memorised(history: History) -> Notice | None:
    losses = values_of(history.train, "loss", MEMORISED_WINDOW)
    accuracies = values_of(history.train, "rewards/accuracies", MEMORISED_WINDOW)
    if len(losses) < MEMORISED_WINDOW or len(accuracies) < MEMORISED_WINDOW:
        return None
    first = history.train[0][1].get("loss")
    step = last_step(history)
    if first is None or step > MEMORISED_RUN_SHARE * history.facts.total_steps:
        return None
    loss, accuracy = statistics.fmean(losses), statistics.fmean(accuracies)
    if accuracy < MEMORISED_ACCURACY or loss > MEMORISED_LOSS_SHARE * first:
        return None
    held_out = values_of(history.evals, "rewards/accuracies", 1)
    compare = f", {held_out[0]:.2f} on held-out pairs" if held_out else ""
    return Notice(
        "memorised",
        "warning",
        step,
        f"Training accuracy {accuracy:.2f} and loss {loss:.3g} before half of the run{compare}",
        "The training pairs are already told apart almost perfectly: they are memorised, or something "
        "simple (length, format) gives them away. What follows mostly pushes the policy further from the "
        "reference.",
        "Stop here or lower train.max_steps, and compare with the held-out accuracy; look for a feature "
        "that all chosen responses share.",
    )


def responses_growing(history: History) -> Notice | None:
    lengths = values_of(history.evals, "samples/response_tokens", len(history.evals))
    if len(lengths) < 1 + GROWTH_EVALS:
        return None
    first, last = lengths[0], lengths[-GROWTH_EVALS:]
    if min(last) < max(GROWTH_RATIO * first, first + GROWTH_TOKENS):
        return None
    return Notice(
        "responses-growing",
        "warning",
        last_step(history),
        f"Sampled responses at {last[-1]:.0f} tokens on average, {first:.0f} before training",
        "Training easily learns that longer is better where chosen responses are longer than rejected ones.",
        "Compare the lengths of chosen and rejected responses with --dry-run; on pairs, a per-token loss "
        "(sigmoid_norm, simpo) or r_dpo takes length out.",
    )
