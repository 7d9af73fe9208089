"""Losses that classify each response on its own: NCA and BCO."""

from __future__ import annotations

import mlx.core as mx

from localdpo.objective.numerics import log_sigmoid
from localdpo.objective.scores import PairScores


def nca_pair_loss(scores: PairScores, *, beta: float) -> mx.array:
    """-ls(beta w) - 1/2 ls(-beta w) - 1/2 ls(-beta l), [B] nats; 2 ln 2 where policy = reference.

    Chen et al. 2024 (noise contrastive alignment), arXiv 2402.05369, the pair-wise NCA loss: the chosen
    response is data, both are noise, so the chosen one's probability is held up rather than only the margin.
    """
    chosen, rejected = beta * scores.w, beta * scores.l
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


def bco_pair_loss(scores: PairScores, *, beta: float) -> mx.array:
    """-ls(beta w) - ls(-beta l), [B] nats; 2 ln 2 where policy = reference.

    Jung et al. 2024 (BCO), arXiv 2404.04656, with the reward shift delta at 0, as TRL's pair version has it
    today (its older versions subtracted a running mean of the rewards).
    """
    return -log_sigmoid(beta * scores.w) - log_sigmoid(-beta * scores.l)
