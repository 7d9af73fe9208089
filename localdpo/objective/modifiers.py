"""What changes a preference loss from outside: which tokens of a response count."""

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
