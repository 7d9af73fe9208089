"""DiscoPOP: the loss that a language model proposed and evolution kept (log-ratio modulated loss)."""

from __future__ import annotations

import mlx.core as mx

from localdpo.objective.numerics import log_sigmoid
from localdpo.objective.scores import PairScores


def discopop_loss(scores: PairScores, *, beta: float, discopop_tau: float = 0.05) -> mx.array:
    """(1 - m) (-ls(x)) + m e^-x with x = beta h and m = s(x / tau), [B]; (ln 2 + 1)/2 at policy = reference.

    Lu et al. 2024, arXiv 2406.08414, LRML; tau 0.05 as there. Defined here for tau <= 1: with tau > 1 the
    second term itself grows without bound as x falls.

    Not convex: the slope in x at policy = reference is (1 - ln 2)/(4 tau) - 3/4, which is above 0 for
    tau < 0.102. With the default tau the margin of a fresh pair is at first pulled below 0, as in the paper's
    figure of the loss.
    """
    x = beta * scores.h
    scaled = x / discopop_tau
    # e^-x alone overflows below x = -88, where m is already 0: inf * 0. In one exponent, ls(x/tau) - x <= 0
    # there.
    exponential = mx.exp(log_sigmoid(scaled) - x)
    return mx.sigmoid(-scaled) * -log_sigmoid(x) + exponential
