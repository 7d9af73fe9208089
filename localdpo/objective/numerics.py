"""Numerically safe pieces: those that several losses share, and KL divergence and entropy.

The former take float32 arrays of any shape, elementwise. KL of policy and reference is exact per token and
estimated per sequence. Shape legend: T tokens (any leading shape), V vocabulary.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import mlx.core as mx

LN2 = 0.6931471805599453
# Largest log-probability that log1mexp takes as it is. Above it 1 - e^x has no correct digit left in float32
# (sums of log-probabilities carry errors of about 1e-7), and at 0 the value would be -inf.
LOG_PROB_MAX = -1e-6
# e^30 = 1e13: its square, in the norm of a gradient, still fits into float32 many times over.
EXPONENT_MAX = 30.0


def log_sigmoid(x: mx.array) -> mx.array:
    """ln s(x) = -ln(1 + e^-x), in nats.

    `log(sigmoid(x))` is -inf below x = -88 in float32; here the exponent is never above 0, and the value is x
    far below zero. The gradient s(-x) keeps its relative accuracy where it is tiny: that of `-logaddexp(0,
    -x)` is computed as 1 - s(x) and has no correct digit left above x = 17.
    """
    positive = x >= 0
    # -|x|, without abs: its gradient at 0, where training starts, would be 0 and not the slope of one branch.
    tail = mx.log1p(mx.exp(mx.where(positive, -x, x)))
    return mx.where(positive, -tail, x - tail)


def log1mexp(x: mx.array) -> mx.array:
    """ln(1 - e^x) for x < 0, in nats (Maechler 2012): the log-probability of the complement.

    Near 0, 1 - e^x cancels, so expm1 is used; far below, e^x is tiny, so log1p is. `where` sends gradients
    into the branch that was not taken too; with x held at LOG_PROB_MAX or below both branches are finite for
    every x, so no 0 * inf arises there.
    """
    x = mx.minimum(x, LOG_PROB_MAX)
    return mx.where(x > -LN2, mx.log(-mx.expm1(x)), mx.log1p(-mx.exp(x)))


def log_odds(x: mx.array) -> mx.array:
    """ln(P / (1 - P)) for P = e^x; P is held just below 1, where the odds would be infinite."""
    clamped = mx.minimum(x, LOG_PROB_MAX)
    return clamped - log1mexp(clamped)


def divergence_score(t: mx.array, divergence: str, alpha: float) -> mx.array:
    """f'(e^t) of log-ratios t (nats): what stands in a loss in place of t for another divergence than KL.

    Wang et al. 2023 (f-DPO), arXiv 2309.16240, theorem 1: with the regulariser D_f(policy || reference) the
    implicit reward is beta f'(u), u = policy / reference, up to a term of the prompt. f is scaled and shifted
    so that f'(1) = 0: scores are 0 where policy = reference, as log-ratios are.

    reverse_kl: t. forward_kl: 1 - e^-t. js (Jensen-Shannon): ln(2 u / (1 + u)) = ln 2 + ls(t), below ln 2.
    alpha: (e^((a-1) t) - 1)/(a - 1) for 0 < a < 1, which is forward_kl at a = 0 and reverse_kl at a = 1.
    Beyond an exponent of 30 the exponentials continue as straight lines, so value and gradient are finite for
    any t and a response that has become very unlikely is still pulled back. ValueError for another name.
    """
    if divergence == "reverse_kl":
        return t
    if divergence == "forward_kl":
        return -_expm1(-t)
    if divergence == "js":
        return LN2 + log_sigmoid(t)
    if divergence == "alpha":
        return _expm1((alpha - 1.0) * t) / (alpha - 1.0)
    raise ValueError(f"unknown f-divergence {divergence!r}")


def _expm1(x: mx.array) -> mx.array:
    """e^x - 1, continued by its tangent from EXPONENT_MAX on."""
    return mx.expm1(mx.minimum(x, EXPONENT_MAX)) + mx.maximum(x - EXPONENT_MAX, 0.0) * math.exp(EXPONENT_MAX)


def kl_per_token(policy_logits_TV: mx.array, reference_logits_TV: mx.array) -> mx.array:
    """KL(policy || reference) at each position, float32 [T] nats.

    sum_v p_v (ln p_v - ln q_v), exact: no sampling, always >= 0. Its sum over the positions of a response
    drawn from the policy would be an estimate of the sequence KL; on positions of given data it is the
    divergence on those prefixes, and is to be named so. ValueError for two different shapes.
    """
    if policy_logits_TV.shape != reference_logits_TV.shape:
        raise ValueError(
            f"expected two arrays of one shape, got {policy_logits_TV.shape} and {reference_logits_TV.shape}"
        )
    policy_logps_TV = _log_softmax(policy_logits_TV)
    gap_TV = policy_logps_TV - _log_softmax(reference_logits_TV)
    kl_T = (mx.exp(policy_logps_TV) * gap_TV).sum(axis=-1)
    # Rounding leaves about -1e-8 where the two agree, and a divergence is not negative.
    return mx.maximum(kl_T, 0.0)


def entropy_per_token(logits_TV: mx.array) -> mx.array:
    """-sum_v p_v ln p_v at each position, float32 [T] nats; exact."""
    logps_TV = _log_softmax(logits_TV)
    return mx.maximum(-(mx.exp(logps_TV) * logps_TV).sum(axis=-1), 0.0)


def sequence_kl(log_ratios: Sequence[float]) -> tuple[float, float | None]:
    """Estimate of KL(policy || reference) over whole responses, and its standard error, in nats.

    log_ratios: ln(policy / reference) of n >= 1 responses that were drawn from the policy itself; their mean
    is unbiased and can be below 0. The standard error is s / sqrt(n) with s the sample standard deviation,
    None for a single response. ValueError for none.
    """
    if not log_ratios:
        raise ValueError("expected one or more log-ratios, got none")
    mean = math.fsum(log_ratios) / len(log_ratios)
    if len(log_ratios) == 1:
        return mean, None
    return mean, statistics.stdev(log_ratios) / math.sqrt(len(log_ratios))


def _log_softmax(logits_TV: mx.array) -> mx.array:
    """Log-probabilities [T, V] in float32; the largest logit comes off first, so any size is fine."""
    x_TV = logits_TV.astype(mx.float32)
    x_TV = x_TV - x_TV.max(axis=-1, keepdims=True)
    return x_TV - mx.logsumexp(x_TV, axis=-1, keepdims=True)
