"""KL divergence of policy and reference, exact per token and estimated per sequence, and entropy.

Shape legend: T tokens (any leading shape), V vocabulary.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import mlx.core as mx


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
