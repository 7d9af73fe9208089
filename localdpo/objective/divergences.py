"""f-divergences: what stands in the loss in place of the log-ratio where another divergence than KL is meant.

Wang et al. 2023 (f-DPO), arXiv 2309.16240, theorem 1: with the regulariser D_f(policy || reference) the
implicit reward is beta f'(u), u = policy / reference, up to a term of the prompt. f is scaled and shifted
so that f'(1) = 0: scores are 0 where policy = reference, as log-ratios are.
"""

from __future__ import annotations

import math
from dataclasses import replace

import mlx.core as mx

from localdpo.objective.numerics import LN2, log_sigmoid
from localdpo.objective.scores import PairScores

# e^30 = 1e13: its square, in the norm of a gradient, still fits into float32 many times over.
EXPONENT_MAX = 30.0


def divergence_score(t: mx.array, divergence: str, alpha: float) -> mx.array:
    """f'(e^t) of log-ratios t (nats, float32, any shape), by the divergence's name, elementwise.

    reverse_kl: t. forward_kl: 1 - e^-t. js (Jensen-Shannon): ln(2 u / (1 + u)) = ln 2 + ls(t), below ln 2.
    alpha: (e^((a-1) t) - 1)/(a - 1) for 0 < a < 1, which is forward_kl at a = 0 and reverse_kl at a = 1.
    Beyond an exponent of 30 the exponentials go on as straight lines, so value and gradient are finite for
    any t and a response that has become very unlikely is still pulled back. ValueError for another name.
    """
    if divergence == "reverse_kl":
        return t
    if divergence == "forward_kl":
        return -_expm1(-t)
    if divergence == "js":
        return LN2 + log_sigmoid(t)
    if divergence == "alpha":
        return _expm1((alpha - 1.0) * t) / (alpha - 1.0)
    raise ValueError(f"unknown f-divergence {divergence!r}")


def with_divergence(scores: PairScores, divergence: str, alpha: float) -> PairScores:
    """Scores whose log-ratios w, l are f'(e^w), f'(e^l); for losses that read nothing but these."""
    if divergence == "reverse_kl":
        return scores
    zeros = mx.zeros_like(scores.policy_chosen)
    return replace(
        scores,
        policy_chosen=divergence_score(scores.w, divergence, alpha),
        policy_rejected=divergence_score(scores.l, divergence, alpha),
        ref_chosen=zeros,
        ref_rejected=zeros,
    )


def _expm1(x: mx.array) -> mx.array:
    """e^x - 1, continued by its tangent from EXPONENT_MAX on."""
    return mx.expm1(mx.minimum(x, EXPONENT_MAX)) + mx.maximum(x - EXPONENT_MAX, 0.0) * math.exp(EXPONENT_MAX)
