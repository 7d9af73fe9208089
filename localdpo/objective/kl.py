"""Exact KL divergence between two next-token distributions, over the whole vocabulary."""

from __future__ import annotations

import mlx.core as mx


def kl_per_token(policy_logits: mx.array, reference_logits: mx.array) -> mx.array:
    """KL(policy || reference) at each position, float32 [T] nats, from logits [T, V] (any leading shape).

    sum_v p_v (ln p_v - ln q_v), exact: no sampling, always >= 0. Its sum over the positions of a response
    drawn from the policy would be an estimate of the sequence KL; on positions of given data it is the
    divergence on those prefixes, and is to be named so. ValueError for two different shapes.
    """
    if policy_logits.shape != reference_logits.shape:
        raise ValueError(
            f"expected two arrays of one shape, got {policy_logits.shape} and {reference_logits.shape}"
        )
    policy_logps = _log_softmax(policy_logits)
    gap = policy_logps - _log_softmax(reference_logits)
    kl = (mx.exp(policy_logps) * gap).sum(axis=-1)
    # Rounding leaves about -1e-8 where the two agree, and a divergence is not negative.
    return mx.maximum(kl, 0.0)


def _log_softmax(logits: mx.array) -> mx.array:
    """Log-probabilities [..., V] in float32; the largest logit comes off first, so any size is fine."""
    x = logits.astype(mx.float32)
    x = x - x.max(axis=-1, keepdims=True)
    return x - mx.logsumexp(x, axis=-1, keepdims=True)
