"""What changes a preference loss from outside: which tokens count, and how much each pair weighs."""

from __future__ import annotations

import mlx.core as mx


def length_desensitised(total: mx.array, public: mx.array, alpha: float) -> mx.array:
    """public + alpha (total - public), [B] nats: log-probabilities whose tail counts alpha times.

    Liu et al. 2024 (LD-DPO), arXiv 2409.06411: `total` is the sum over all tokens of a response, `public`
    over its first min(|w|, |l|) ones, the length that both responses of the pair have. alpha = 1 is DPO; at 0
    what the longer response has beyond the shorter one counts nothing. Policy and reference are treated the
    same way.
    """
    return public + alpha * (total - public)


def pair_weights(chosen: mx.array, rejected: mx.array) -> mx.array:
    """min(1, e^(chosen + rejected)), [B]: how much each pair resembles the policy's own samples, no gradient.

    Zhou et al. 2024 (WPO), arXiv 2406.11827, eq. 2 with sampled alignment: `chosen`, `rejected` [B] are the
    means over a response's tokens of ln p(token) - ln sum_v p_v^2, 0 in expectation for a token that the
    policy would draw. Clamped at 1 as in the paper's code and in TRL.
    """
    return mx.stop_gradient(mx.minimum(mx.exp(chosen + rejected), 1.0))
