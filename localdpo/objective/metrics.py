"""Metrics of a batch as sums with their denominators, so that any split of the rows gives the same figures.

A mean of means weighs a pair in a small micro-batch more than one in a large batch. Here a step or an
evaluation adds up numerators and denominators, and divides once, at the end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import mlx.core as mx

from localdpo.objective.losses.sft import sft_loss
from localdpo.objective.scores import log_ratios, rewards

# name -> float32 [2]: numerator and denominator. One array and not two scalars, because MLX 0.32.4 merges
# equal scalars of a compiled function even where they are its outputs, and then stops with "IndexError:
# _Map_base::at".
BatchSums = dict[str, mx.array]


class Sums:
    """Running sums on the host: name -> (numerator, denominator) as Python floats (float64).

    `add` takes what `pair_metrics` returned, another `Sums`, or pairs of numbers; names may differ between
    calls (kl is measured on some steps only). `means` divides; a name whose denominator is 0 was not measured
    and is left out. Rows without pairs have no margins to average: there `rewards/margins` is the difference
    of the two means, where both were measured (as in TRL).
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def add(self, other: Mapping[str, mx.array | tuple[float, float]] | Sums) -> Sums:
        for name, pair in other.items():
            numerator, denominator = _floats(pair)
            old_numerator, old_denominator = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = (old_numerator + numerator, old_denominator + denominator)
        return self

    def items(self) -> Iterator[tuple[str, tuple[float, float]]]:
        return iter(self._sums.items())

    def means(self) -> dict[str, float]:
        means = {name: total / weight for name, (total, weight) in self._sums.items() if weight != 0.0}
        both = means.get("rewards/chosen"), means.get("rewards/rejected")
        if "rewards/margins" not in self._sums and both[0] is not None and both[1] is not None:
            means["rewards/margins"] = both[0] - both[1]
        return means


def pair_metrics(
    policy_chosen: mx.array,
    policy_rejected: mx.array,
    ref_chosen: mx.array | None,
    ref_rejected: mx.array | None,
    beta: float,
    *,
    losses: mx.array,
    chosen_tokens: mx.array,
    rejected_tokens: mx.array,
) -> BatchSums:
    """Sums over B pairs, usable inside `mx.compile` and as extra outputs of `value_and_grad`.

    policy_*, ref_* [B]: log-probabilities of whole responses (nats); losses [B]: what `preference_loss`
    returned; *_tokens [B]: scored tokens. Pass the real reference also when the loss is `reference_free`;
    None for a loss without one. Means have these units: loss as the loss; rewards/* beta times nats; logps/*
    nats a response; rewards/accuracies (chosen reward strictly above the rejected one), rewards/ties (equal)
    and displacement (chosen less likely than under the reference) shares of pairs; logratio_per_token/* nats
    per token.

    The rewards are those of `pair_rewards`; without a reference the figures that compare with one are not
    there. ValueError for arrays that are not all of one shape [B].
    """
    chosen, rejected, loss, tokens_w, tokens_l = map(
        _float32, (policy_chosen, policy_rejected, losses, chosen_tokens, rejected_tokens)
    )
    if (ref_chosen is None) != (ref_rejected is None):
        raise ValueError("pair_metrics: expected both ref_chosen and ref_rejected, or neither")
    ref_w = None if ref_chosen is None else _float32(ref_chosen)
    ref_l = None if ref_rejected is None else _float32(ref_rejected)
    arrays = (chosen, rejected, loss, tokens_w, tokens_l, ref_w, ref_l)
    shapes = {tuple(a.shape) for a in arrays if a is not None}
    if len(shapes) != 1 or chosen.ndim != 1:
        raise ValueError(f"pair_metrics: expected arrays of one shape [B], got {sorted(shapes)}")
    reward_w, reward_l = pair_rewards(
        chosen, rejected, ref_w, ref_l, beta, chosen_tokens=tokens_w, rejected_tokens=tokens_l
    )
    compared: BatchSums = {}
    if ref_w is not None and ref_l is not None:
        w, l = log_ratios(chosen, ref_w), log_ratios(rejected, ref_l)  # noqa: E741 - the papers' letters
        compared = {
            "displacement": _mean_of(w < 0.0),
            "logratio_per_token/chosen": mx.stack([w.sum(), tokens_w.sum()]),
            "logratio_per_token/rejected": mx.stack([l.sum(), tokens_l.sum()]),
        }
    return {
        "loss": _mean_of(loss),
        "rewards/chosen": _mean_of(reward_w),
        "rewards/rejected": _mean_of(reward_l),
        "rewards/accuracies": _mean_of(reward_w > reward_l),
        "rewards/ties": _mean_of(reward_w == reward_l),
        "rewards/margins": _mean_of(reward_w - reward_l),
        "logps/chosen": _mean_of(chosen),
        "logps/rejected": _mean_of(rejected),
        **compared,
    }


def pair_rewards(
    policy_chosen: mx.array,
    policy_rejected: mx.array,
    ref_chosen: mx.array | None,
    ref_rejected: mx.array | None,
    beta: float,
    *,
    chosen_tokens: mx.array,
    rejected_tokens: mx.array,
) -> tuple[mx.array, mx.array]:
    """(chosen, rejected) rewards [B] of pairs given as to `pair_metrics`: beta times the log-ratio in nats.

    Without a reference the reward is beta * p / |y| (SimPO's, and what TRL reports for it).
    """
    if ref_chosen is None or ref_rejected is None:
        return beta * policy_chosen / chosen_tokens, beta * policy_rejected / rejected_tokens
    return rewards(policy_chosen, ref_chosen, beta), rewards(policy_rejected, ref_rejected, beta)


def unpaired_metrics(
    policy: mx.array,
    reference: mx.array,
    beta: float,
    *,
    losses: mx.array,
    desirable: mx.array,
    tokens: mx.array,
    baseline: mx.array | None = None,
) -> BatchSums:
    """Sums over B single responses with a label, usable inside `mx.compile`.

    policy, reference [B]: log-probabilities of whole responses (nats); losses [B]; desirable [B]: bool;
    tokens [B]: scored tokens; baseline: the KL baseline z, a scalar. TRL's names for KTO: `*/chosen` are over
    the desirable rows, `*/rejected` over the undesirable ones, each with its own number as the denominator,
    so a batch without such rows adds nothing to them. rewards/* are beta times nats, logps/* and kl_baseline
    (z; TRL calls it kl) nats a response, logratio_per_token/* nats a token, displacement the share of
    desirable responses that are less likely than under the reference. ValueError for arrays that are not of
    one shape [B].
    """
    shapes = {tuple(array.shape) for array in (policy, reference, losses, desirable, tokens)}
    if len(shapes) != 1 or policy.ndim != 1:
        raise ValueError(f"unpaired_metrics: expected arrays of one shape [B], got {sorted(shapes)}")
    h, good, bad = log_ratios(policy, reference), desirable, mx.logical_not(desirable)
    sums = {
        "loss": _mean_of(losses),
        "rewards/chosen": _mean_where(good, beta * h),
        "rewards/rejected": _mean_where(bad, beta * h),
        "logps/chosen": _mean_where(good, policy),
        "logps/rejected": _mean_where(bad, policy),
        "logratio_per_token/chosen": _mean_where(good, h, tokens),
        "logratio_per_token/rejected": _mean_where(bad, h, tokens),
        "displacement": _mean_where(good, h < 0.0),
    }
    if baseline is not None:
        sums["kl_baseline"] = _mean_of(mx.broadcast_to(baseline, policy.shape))
    return sums


def demonstration_metrics(logps: mx.array, tokens: mx.array) -> BatchSums:
    """Sums over B demonstrations, [B] each: loss (nats per token) and logps/chosen (nats a response)."""
    return {"loss": mx.stack(list(sft_loss(logps, tokens))), "logps/chosen": _mean_of(logps)}


def _mean_of(values: mx.array) -> mx.array:
    """(sum, number) of values [B], float32 [2]."""
    return mx.stack([values.astype(mx.float32).sum(), mx.array(values.size, dtype=mx.float32)])


def _mean_where(mask: mx.array, values: mx.array, weights: mx.array | None = None) -> mx.array:
    """(sum of values, sum of weights) over the masked rows, [B] each, as float32 [2]; weights: 1."""
    per_row = mx.ones(values.shape) if weights is None else weights.astype(mx.float32)
    kept = [mx.where(mask, array, 0.0).sum() for array in (values.astype(mx.float32), per_row)]
    return mx.stack(kept)


def _float32(values: mx.array) -> mx.array:
    return values.astype(mx.float32)


def _floats(pair: mx.array | tuple[float, float]) -> tuple[float, float]:
    return float(pair[0]), float(pair[1])
