"""IPO: squared distance of the margin from 1 / (2 beta)."""

from __future__ import annotations

import mlx.core as mx

from localdpo.objective.scores import PairScores


def ipo_loss(scores: PairScores, *, beta: float) -> mx.array:
    """(w/|w| - l/|l| - 1/(2 beta))^2, [B] nats^2 per token^2; 1/(4 beta^2) where policy = reference.

    Azar et al. 2023, arXiv 2310.12036, eq. 17 (beta is their tau), on averages over the scored tokens as TRL
    computes it: with sums, the target margin means something else for every response length.
    """
    chosen_tokens, rejected_tokens = scores.token_counts
    margin = scores.w / chosen_tokens - scores.l / rejected_tokens
    return mx.square(margin - 0.5 / beta)


def ipo_sum_loss(scores: PairScores, *, beta: float) -> mx.array:
    """(h - 1/(2 beta))^2, [B] nats^2; 1/(4 beta^2) where policy = reference.

    Azar et al. 2023, arXiv 2310.12036, eq. 17, on sums over the response as the paper and Mitchell's
    reference implementation have it.
    """
    return mx.square(scores.h - 0.5 / beta)
