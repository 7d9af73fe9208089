"""Losses on single responses that were found desirable or not: KTO, and APO-zero without pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import mlx.core as mx

from localdpo.objective.scores import UnpairedScores


def kl_baseline(log_ratios: mx.array) -> mx.array:
    """z = max(0, mean of `log_ratios` [M]), a float32 scalar in nats a response, without gradient.

    Ethayarajh et al. 2024, arXiv 2402.01306, section 4: what KTO takes for KL(policy || reference). The exact
    one needs samples of the policy; the estimate takes ln(policy / reference) of completions that belong to
    other prompts of the batch. That mean can be below 0, which no KL is. ValueError for no log-ratios.
    """
    if log_ratios.ndim != 1 or log_ratios.size == 0:
        raise ValueError(f"kl_baseline: expected log-ratios of shape [M], M >= 1, got {log_ratios.shape}")
    return mx.stop_gradient(mx.maximum(log_ratios.astype(mx.float32).mean(), 0.0))


def kto(
    scores: UnpairedScores, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> mx.array:
    """a (1 - s(beta (h - z))) of a desirable, b (1 - s(beta (z - h))) of an undesirable response, [B].

    Ethayarajh et al. 2024, arXiv 2402.01306, section 4: h is the response's log-ratio, z the KL baseline of
    the batch (`kl_baseline`), a and b are desirable_weight and undesirable_weight (the paper's lambda_D and
    lambda_U). The value of a response saturates on both sides of z: a sample that is far off has hardly any
    gradient. a/2 and b/2 where policy = reference.
    """
    return _value_missed(scores, beta * (scores.h - scores.z), desirable_weight, undesirable_weight)


def apo_zero_unpaired(
    scores: UnpairedScores, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> mx.array:
    """a (1 - s(beta h)) of a desirable, b s(beta h) of an undesirable response, [B].

    D'Oosterlinck et al. 2024, arXiv 2408.06266, APO-zero on single responses, as TRL's KTOTrainer has it: KTO
    with z = 0, so that no mismatched completions have to be scored.
    """
    return _value_missed(scores, beta * scores.h, desirable_weight, undesirable_weight)


def _value_missed(
    scores: UnpairedScores, reward: mx.array, desirable_weight: float, undesirable_weight: float
) -> mx.array:
    """weight * (1 - s(+-reward)), [B]; 1 - s(x) is computed as s(-x), which does not cancel."""
    weight = mx.where(scores.desirable, desirable_weight, undesirable_weight)
    return weight * mx.sigmoid(mx.where(scores.desirable, -reward, reward))


FORMULAS: Final[Mapping[str, Callable[..., mx.array]]] = {
    "kto": kto,
    "apo_zero_unpaired": apo_zero_unpaired,
}
