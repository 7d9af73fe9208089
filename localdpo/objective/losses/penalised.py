"""DPO with an extra term inside the sigmoid: DPO-Positive and length-regularised DPO."""

from __future__ import annotations

import mlx.core as mx

from localdpo.objective.numerics import log_sigmoid
from localdpo.objective.scores import PairScores


def dpop_loss(scores: PairScores, *, beta: float, dpop_lambda: float = 50.0) -> mx.array:
    """-ls(beta (h - lambda max(0, -w))), [B] nats; ln 2 where policy = reference.

    Pal et al. 2024 (Smaug), arXiv 2402.13228, eq. 3: a chosen response that became less likely than under the
    reference costs lambda times the fall.
    """
    penalty = mx.maximum(-scores.w, 0.0)
    return -log_sigmoid(beta * (scores.h - dpop_lambda * penalty))


def r_dpo_loss(scores: PairScores, *, beta: float, r_dpo_alpha: float = 0.01) -> mx.array:
    """-ls(beta h + alpha (|w| - |l|)), [B] nats; ln 2 where policy = reference and the lengths are equal.

    Park et al. 2024, arXiv 2403.19159: the objective E[r] - alpha E|y| - beta KL is maximal at pi ~ ref
    exp((r - alpha |y|)/beta), so r_w - r_l = beta h + alpha (|w| - |l|). A longer chosen response thus has
    part of its preference explained by its length, and is pushed up less. (With the opposite sign, which is
    seen in other code, the policy is pushed towards long responses.)
    """
    chosen_tokens, rejected_tokens = scores.token_counts
    return -log_sigmoid(beta * scores.h + r_dpo_alpha * (chosen_tokens - rejected_tokens))
