"""DPO: logistic loss on the margin of the log-ratios."""

from __future__ import annotations

import mlx.core as mx

from localdpo.objective.numerics import log_sigmoid
from localdpo.objective.scores import PairScores


def smoothed_logistic(x: mx.array, label_smoothing: float) -> mx.array:
    """-(1 - e) ls(x) - e ls(-x) for e = label_smoothing, elementwise, nats."""
    if label_smoothing == 0.0:
        return -log_sigmoid(x)
    return -(1.0 - label_smoothing) * log_sigmoid(x) - label_smoothing * log_sigmoid(-x)


def sigmoid_loss(scores: PairScores, *, beta: float, label_smoothing: float = 0.0) -> mx.array:
    """-(1 - e) ls(beta h) - e ls(-beta h), [B] nats; ln 2 where policy = reference.

    e = 0 is DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7). e > 0 is conservative DPO (Mitchell, "A note
    on DPO with noisy preferences and relationship to IPO", eq. 3): labels are taken as swapped with
    probability e, and the margin settles at ln((1 - e) / e) / beta instead of growing for ever.
    """
    return smoothed_logistic(beta * scores.h, label_smoothing)
