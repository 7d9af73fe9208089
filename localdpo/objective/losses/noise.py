"""Losses that model the noise of the labels: robust DPO and EXO."""

from __future__ import annotations

import math

import mlx.core as mx

from localdpo.objective.numerics import log_sigmoid
from localdpo.objective.scores import PairScores


def robust_loss(scores: PairScores, *, beta: float, label_smoothing: float = 0.0) -> mx.array:
    """[-(1 - e) ls(beta h) + e ls(-beta h)] / (1 - 2 e), [B] nats; ln 2 where policy = reference.

    Chowdhury et al. 2024 (rDPO), arXiv 2403.00409, eq. 12: its mean over labels swapped with probability
    e < 1/2 is the DPO loss of the clean labels. e = 0 is DPO. Not bounded below for e > 0.
    """
    x, e = beta * scores.h, label_smoothing
    # ls(-x) = ls(x) - x, so the numerator is -(1 - 2e) ls(x) - e x: the two logarithms need not cancel.
    return -log_sigmoid(x) - (e / (1.0 - 2.0 * e)) * x


def exo_pair_loss(scores: PairScores, *, beta: float, label_smoothing: float) -> mx.array:
    """s(beta h) (ls(beta h) - ln(1 - e)) + s(-beta h) (ls(-beta h) - ln e), [B] nats, for 0 < e < 1/2.

    Ji et al. 2024 (EXO), arXiv 2402.00856, eq. 16 with K = 2: the KL divergence from the policy's preference
    (s(beta h), s(-beta h)) to the smoothed label (1 - e, e). 0 at beta h = ln((1 - e)/e).
    """
    x = beta * scores.h
    # s(x) is exactly 0 long before ls(x) = x could overflow, so the products stay finite.
    chosen = mx.sigmoid(x) * (log_sigmoid(x) - math.log1p(-label_smoothing))
    rejected = mx.sigmoid(-x) * (log_sigmoid(-x) - math.log(label_smoothing))
    return chosen + rejected
