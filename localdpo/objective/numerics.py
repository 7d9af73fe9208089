"""Numerically safe pieces that several losses share. Float32 arrays of any shape, elementwise."""

from __future__ import annotations

import mlx.core as mx

LN2 = 0.6931471805599453
# Largest log-probability that log1mexp takes as it is. Above it 1 - e^x has no correct digit left in float32
# (sums of log-probabilities carry errors of about 1e-7), and at 0 the value would be -inf.
LOG_PROB_MAX = -1e-6


def log_sigmoid(x: mx.array) -> mx.array:
    """ln s(x) = -ln(1 + e^-x), in nats.

    `log(sigmoid(x))` is -inf below x = -88 in float32; here the exponent is never above 0, and the value is x
    far below zero. The gradient s(-x) keeps its relative accuracy where it is tiny: that of `-logaddexp(0,
    -x)` is computed as 1 - s(x) and has no correct digit left above x = 17.
    """
    positive = x >= 0
    # -|x|, without abs: its gradient at 0, where training starts, would be 0 and not the slope of one branch.
    tail = mx.log1p(mx.exp(mx.where(positive, -x, x)))
    return mx.where(positive, -tail, x - tail)


def log1mexp(x: mx.array) -> mx.array:
    """ln(1 - e^x) for x < 0, in nats (Maechler 2012): the log-probability of the complement.

    Near 0, 1 - e^x cancels, so expm1 is used; far below, e^x is tiny, so log1p is. `where` sends gradients
    into the branch that was not taken too; with x held at LOG_PROB_MAX or below both branches are finite for
    every x, so no 0 * inf arises there.
    """
    x = mx.minimum(x, LOG_PROB_MAX)
    return mx.where(x > -LN2, mx.log(-mx.expm1(x)), mx.log1p(-mx.exp(x)))
