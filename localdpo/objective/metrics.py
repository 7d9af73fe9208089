"""Metrics of a batch as sums with their denominators, so that any split of the rows gives the same figures.

A mean of means weighs a pair in a small micro-batch more than one in a large batch. Here a step or an
evaluation adds up numerators and denominators, and divides once, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx

from localdpo.objective.losses.responses import sft_loss
from localdpo.objective.scores import PairScores, ResponseScores, UnpairedScores

# name -> float32 [2]: numerator and denominator. One array and not two scalars, because MLX 0.32.4 merges
# equal scalars of a compiled function even where they are its outputs, and then stops with "IndexError:
# _Map_base::at".
BatchSums = dict[str, mx.array]


class Sums:
    """Running sums on the host: name -> (numerator, denominator) as Python floats (float64).

    `add` takes what `pair_metrics` returned, or pairs of numbers; names may differ between
    calls (kl is measured on some steps only). `means` divides; a name whose denominator is 0 was not measured
    and has no mean. Rows without pairs have no margins to average: there `rewards/margins` is the difference
    of the two means, where both were measured (as in TRL).
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, sums: Mapping[str, mx.array | tuple[float, float]]) -> Sums:
        for name, pair in sums.items():
            numerator, denominator = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (numerator + float(pair[0]), denominator + float(pair[1]))
        return self

    def sums(self) -> dict[str, tuple[float, float]]:
        """What was added up so far, by name."""
        return dict(self._sums)

    def means(self) -> dict[str, float]:
        means = {name: total / weight for name, (total, weight) in self._sums.items() if weight != 0.0}
        chosen, rejected = means.get("rewards/chosen"), means.get("rewards/rejected")
        if "rewards/margins" not in self._sums and chosen is not None and rejected is not None:
            means["rewards/margins"] = chosen - rejected
        return means


def pair_metrics(
    scores: PairScores, losses: mx.array, beta: float, weights: mx.array | None = None
) -> BatchSums:
    """Sums over B pairs, usable inside `mx.compile` and as extra outputs of `value_and_grad`.

    scores: with token counts, and with the real reference also where the loss is `reference_free`; without
    one for a loss that has none. losses [B]: what `pair_losses` returned. weights [B]: 1 for a pair that
    counts, 0 for one that fills a place; None: all count. Means have these units: loss as the loss; rewards/*
    beta times nats; logps/* nats a response; rewards/accuracies (chosen reward strictly above the rejected
    one), rewards/ties (equal) and displacement (chosen less likely than under the reference) shares of pairs;
    logratio_per_token/* nats per token.

    The rewards are those of `PairScores.rewards`; figures that compare with a reference need one. ValueError
    for arrays that are not all of one shape [B].
    """
    if (scores.chosen.reference is None) != (scores.rejected.reference is None):
        raise ValueError("pair_metrics: expected both ref_chosen and ref_rejected, or neither")
    scores = scores.float32("pair_metrics")
    chosen, rejected = scores.chosen, scores.rejected
    if losses.shape != chosen.policy.shape:
        raise ValueError(f"pair_metrics: expected losses of shape {chosen.policy.shape}, got {losses.shape}")
    reward_w, reward_l = scores.rewards(beta)
    compared: BatchSums = {}
    if chosen.reference is not None:
        w, l = chosen.log_ratio, rejected.log_ratio  # noqa: E741 - the papers' letters
        compared = {
            "displacement": _mean_of(w < 0.0, weights),
            "logratio_per_token/chosen": _mean_of(w, weights, chosen.length),
            "logratio_per_token/rejected": _mean_of(l, weights, rejected.length),
        }
    return {
        "loss": _mean_of(losses, weights),
        "rewards/chosen": _mean_of(reward_w, weights),
        "rewards/rejected": _mean_of(reward_l, weights),
        "rewards/accuracies": _mean_of(reward_w > reward_l, weights),
        "rewards/ties": _mean_of(reward_w == reward_l, weights),
        "rewards/margins": _mean_of(reward_w - reward_l, weights),
        "logps/chosen": _mean_of(chosen.policy, weights),
        "logps/rejected": _mean_of(rejected.policy, weights),
        **compared,
    }


def unpaired_metrics(
    scores: UnpairedScores, losses: mx.array, beta: float, weights: mx.array | None = None
) -> BatchSums:
    """Sums over B single responses with a label, usable inside `mx.compile`.

    scores: with reference and token counts; losses [B]; weights [B] as for pairs. TRL's names for KTO:
    `*/chosen` are over the desirable rows, `*/rejected` over the undesirable ones, each with its own number
    as the denominator, so a batch without such rows adds nothing to them. rewards/* are beta times nats,
    logps/* and kl_baseline (z; TRL calls it kl) nats a response, logratio_per_token/* nats a token,
    displacement the share of desirable responses that are less likely than under the reference. ValueError
    for arrays that are not of one shape [B].
    """
    policy, tokens, good = scores.responses.policy, scores.responses.length, scores.desirable
    shapes = {tuple(array.shape) for array in (policy, scores.h, losses, good, tokens)}
    if len(shapes) != 1 or policy.ndim != 1:
        raise ValueError(f"unpaired_metrics: expected arrays of one shape [B], got {sorted(shapes)}")
    h, bad = scores.h, mx.logical_not(good)
    if weights is not None:
        good, bad = (mx.logical_and(mask, weights > 0.0) for mask in (good, bad))
    sums = {
        "loss": _mean_of(losses, weights),
        "rewards/chosen": _mean_where(good, beta * h),
        "rewards/rejected": _mean_where(bad, beta * h),
        "logps/chosen": _mean_where(good, policy),
        "logps/rejected": _mean_where(bad, policy),
        "logratio_per_token/chosen": _mean_where(good, h, tokens),
        "logratio_per_token/rejected": _mean_where(bad, h, tokens),
        "displacement": _mean_where(good, h < 0.0),
    }
    if scores.baseline is not None:
        sums["kl_baseline"] = _mean_of(mx.broadcast_to(scores.baseline, policy.shape), weights)
    return sums


def demonstration_metrics(scores: ResponseScores, weights: mx.array | None = None) -> BatchSums:
    """Sums over B demonstrations with token counts: loss (nats per token), logps/chosen (nats a response).

    weights [B] as for pairs.
    """
    policy, tokens = _weighted(scores.policy, weights), _weighted(scores.length, weights)
    return {"loss": mx.stack([*sft_loss(policy, tokens)]), "logps/chosen": _mean_of(scores.policy, weights)}


def _weighted(values: mx.array, weights: mx.array | None) -> mx.array:
    values = values.astype(mx.float32)
    return values if weights is None else values * weights


def _mean_of(values: mx.array, weights: mx.array | None, tokens: mx.array | None = None) -> mx.array:
    """(sum of values, sum of tokens or, without them, number of values), [B] each, as float32 [2]."""
    over = mx.ones(values.shape) if tokens is None else tokens
    return mx.stack([_weighted(values, weights).sum(), _weighted(over, weights).sum()])


def _mean_where(mask: mx.array, values: mx.array, weights: mx.array | None = None) -> mx.array:
    """(sum of values, sum of weights) over the masked rows, [B] each, as float32 [2]; weights: 1."""
    per_row = mx.ones(values.shape) if weights is None else weights
    return mx.stack([mx.where(mask, a.astype(mx.float32), 0.0).sum() for a in (values, per_row)])
