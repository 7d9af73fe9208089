"""Anchored preference optimisation: the chosen and the rejected reward are each told where to go."""

from __future__ import annotations

import mlx.core as mx

from localdpo.objective.scores import PairScores


def apo_zero_loss(scores: PairScores, *, beta: float) -> mx.array:
    """1 - s(beta w) + s(beta l), [B]; 1 where policy = reference.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, APO-zero: chosen up, rejected down. For chosen responses
    better than what the model says itself. `1 - s(x)` is computed as s(-x), which does not cancel.
    """
    return mx.sigmoid(-beta * scores.w) + mx.sigmoid(beta * scores.l)


def apo_down_loss(scores: PairScores, *, beta: float) -> mx.array:
    """s(beta w) + 1 - s(beta h), [B]; 1 where policy = reference.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, APO-down: both down, rejected faster. For chosen responses
    worse than what the model says itself.
    """
    return mx.sigmoid(beta * scores.w) + mx.sigmoid(-beta * scores.h)
