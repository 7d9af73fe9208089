"""Length-normalised DPO."""

from __future__ import annotations

import mlx.core as mx

from localdpo.objective.numerics import log_sigmoid
from localdpo.objective.scores import PairScores


def sigmoid_norm_loss(scores: PairScores, *, beta: float) -> mx.array:
    """-ls(beta (w/|w| - l/|l|)), [B] nats; ln 2 where policy = reference.

    Lambert et al. 2024 (Tulu 3), arXiv 2411.15124, sec. 5: DPO on averages over the scored tokens. Averages
    are tens to hundreds of times smaller than sums, so beta is larger (5 there).
    """
    chosen_tokens, rejected_tokens = scores.token_counts
    return -log_sigmoid(beta * (scores.w / chosen_tokens - scores.l / rejected_tokens))
