"""SLiC: hinge loss on the margin."""

from __future__ import annotations

import mlx.core as mx

from localdpo.objective.scores import PairScores


def hinge_loss(scores: PairScores, *, beta: float) -> mx.array:
    """max(0, 1 - beta h), [B]; 1 where policy = reference.

    Zhao et al. 2023 (SLiC-HF), arXiv 2305.10425, eq. 1, on log-ratios and with margin 1 as in Liu et al. 2023
    (RSO), arXiv 2309.06657, sec. 3.3. The gradient is -beta/+beta until a pair is beyond the margin, then 0.
    """
    return mx.maximum(1.0 - beta * scores.h, 0.0)
