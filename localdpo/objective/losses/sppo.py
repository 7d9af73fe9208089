"""SPPO: regression of each log-ratio onto half the inverse temperature."""

from __future__ import annotations

import mlx.core as mx

from localdpo.objective.scores import PairScores


def sppo_hard_loss(scores: PairScores, *, beta: float) -> mx.array:
    """(w - 1/(2 beta))^2 + (l + 1/(2 beta))^2, [B] nats^2; 1/(2 beta^2) where policy = reference.

    Wu et al. 2024, arXiv 2405.00675, eq. 4.7 with hard labels: the chosen response wins with probability 1,
    the rejected one with 0, and beta is 1/eta.
    """
    target = 0.5 / beta
    return mx.square(scores.w - target) + mx.square(scores.l + target)
