"""Losses on the margin between the two responses of a pair. Notation: see `objective/scores.py`."""

from __future__ import annotations

import math

import mlx.core as mx

from localdpo.objective.numerics import log_sigmoid
from localdpo.objective.scores import PairScores


def smoothed_logistic(x: mx.array, label_smoothing: float) -> mx.array:
    """-(1 - e) ls(x) - e ls(-x) for e = label_smoothing, elementwise, nats."""
    if label_smoothing == 0.0:
        return -log_sigmoid(x)
    return -(1.0 - label_smoothing) * log_sigmoid(x) - label_smoothing * log_sigmoid(-x)


def sigmoid(scores: PairScores, *, beta: float, label_smoothing: float) -> mx.array:
    """-(1 - e) ls(beta h) - e ls(-beta h), [B] nats; ln 2 where policy = reference.

    e = 0 is DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7). e > 0 is conservative DPO (Mitchell, "A note
    on DPO with noisy preferences and relationship to IPO", eq. 3): labels are taken as swapped with
    probability e, and the margin settles at ln((1 - e) / e) / beta instead of growing without bound.
    """
    return smoothed_logistic(beta * scores.h, label_smoothing)


def ipo(scores: PairScores, *, beta: float) -> mx.array:
    """(w/|w| - l/|l| - 1/(2 beta))^2, [B] nats^2 per token^2; 1/(4 beta^2) where policy = reference.

    Azar et al. 2023, arXiv 2310.12036, eq. 17 (beta is their tau), on averages over the scored tokens as TRL
    computes it: with sums, the target margin means something else for every response length.
    """
    margin = scores.w / scores.chosen.length - scores.l / scores.rejected.length
    return mx.square(margin - 0.5 / beta)


def ipo_sum(scores: PairScores, *, beta: float) -> mx.array:
    """(h - 1/(2 beta))^2, [B] nats^2; 1/(4 beta^2) where policy = reference.

    Azar et al. 2023, arXiv 2310.12036, eq. 17, on sums over the response as the paper and Mitchell's
    reference implementation have it.
    """
    return mx.square(scores.h - 0.5 / beta)


def hinge(scores: PairScores, *, beta: float) -> mx.array:
    """max(0, 1 - beta h), [B]; 1 where policy = reference.

    Zhao et al. 2023 (SLiC-HF), arXiv 2305.10425, eq. 1, on log-ratios and with margin 1 as in Liu et al. 2023
    (RSO), arXiv 2309.06657, sec. 3.3. The gradient is -beta/+beta until a pair is beyond the margin, then 0.
    """
    return mx.maximum(1.0 - beta * scores.h, 0.0)


def robust(scores: PairScores, *, beta: float, label_smoothing: float) -> mx.array:
    """[-(1 - e) ls(beta h) + e ls(-beta h)] / (1 - 2 e), [B] nats; ln 2 where policy = reference.

    Chowdhury et al. 2024 (rDPO), arXiv 2403.00409, eq. 12: its mean over labels swapped with probability
    e < 1/2 is the DPO loss of the clean labels. e = 0 is DPO. Not bounded below for e > 0.
    """
    x, e = beta * scores.h, label_smoothing
    # ls(-x) = ls(x) - x, so the numerator is -(1 - 2e) ls(x) - e x: the two logarithms need not cancel.
    return -log_sigmoid(x) - (e / (1.0 - 2.0 * e)) * x


def exo_pair(scores: PairScores, *, beta: float, label_smoothing: float) -> mx.array:
    """s(beta h) (ls(beta h) - ln(1 - e)) + s(-beta h) (ls(-beta h) - ln e), [B] nats, for 0 < e < 1/2.

    Ji et al. 2024 (EXO), arXiv 2402.00856, eq. 16 with K = 2: the KL divergence from the policy's preference
    (s(beta h), s(-beta h)) to the smoothed label (1 - e, e). 0 at beta h = ln((1 - e)/e).
    """
    x = beta * scores.h
    # s(x) is exactly 0 long before ls(x) = x could overflow, so the products stay finite.
    chosen = mx.sigmoid(x) * (log_sigmoid(x) - math.log1p(-label_smoothing))
    rejected = mx.sigmoid(-x) * (log_sigmoid(-x) - math.log(label_smoothing))
    return chosen + rejected


def discopop(scores: PairScores, *, beta: float, discopop_tau: float) -> mx.array:
    """(1 - m) (-ls(x)) + m e^-x with x = beta h and m = s(x / tau), [B]; (ln 2 + 1)/2 at policy = reference.

    Lu et al. 2024, arXiv 2406.08414: the loss that a language model proposed and evolution kept (LRML, the
    log-ratio modulated loss); tau 0.05 as there. Defined here for tau <= 1: with tau > 1 the second term
    itself grows without bound as x falls.

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


def sigmoid_norm(scores: PairScores, *, beta: float) -> mx.array:
    """-ls(beta (w/|w| - l/|l|)), [B] nats; ln 2 where policy = reference.

    Lambert et al. 2024 (Tulu 3), arXiv 2411.15124, sec. 5: DPO on averages over the scored tokens. Averages
    are tens to hundreds of times smaller than sums, so beta is larger (5 there).
    """
    return -log_sigmoid(beta * (scores.w / scores.chosen.length - scores.l / scores.rejected.length))


def dpop(scores: PairScores, *, beta: float, dpop_lambda: float) -> mx.array:
    """-ls(beta (h - lambda max(0, -w))), [B] nats; ln 2 where policy = reference.

    Pal et al. 2024 (Smaug), arXiv 2402.13228, eq. 3: a chosen response that became less likely than under the
    reference costs lambda times the fall.
    """
    penalty = mx.maximum(-scores.w, 0.0)
    return -log_sigmoid(beta * (scores.h - dpop_lambda * penalty))


def r_dpo(scores: PairScores, *, beta: float, r_dpo_alpha: float) -> mx.array:
    """-ls(beta h + alpha (|w| - |l|)), [B] nats; ln 2 where policy = reference if the lengths are equal.

    Park et al. 2024, arXiv 2403.19159: the objective E[r] - alpha E|y| - beta KL is maximal at pi ~ ref
    exp((r - alpha |y|)/beta), so r_w - r_l = beta h + alpha (|w| - |l|). A longer chosen response thus has
    part of its preference explained by its length, and is pushed up less. (With the opposite sign, which is
    seen in other code, the policy is pushed towards long responses.)
    """
    return -log_sigmoid(beta * scores.h + r_dpo_alpha * (scores.chosen.length - scores.rejected.length))


# --- margins of ranks: the k-th smallest value on one side meets the k-th smallest on the other, so term k of
# the result belongs to a rank in the batch, and a batch's loss is not the mean of its micro-batches' losses.


def aot(scores: PairScores, *, beta: float, label_smoothing: float) -> mx.array:
    """-(1 - e) ls(beta d) - e ls(-beta d) with d = sort(p_w - p_l) - sort(r_w - r_l), [B] by rank, nats.

    Melnyk et al. 2024 (alignment by optimal transport), arXiv 2406.05882, paired version; ln 2 in each rank
    where policy = reference.
    """
    chosen, rejected = scores.chosen, scores.rejected
    assert chosen.reference is not None
    assert rejected.reference is not None
    policy_gaps = mx.sort(chosen.policy - rejected.policy)
    reference_gaps = mx.sort(chosen.reference - rejected.reference)
    return smoothed_logistic(beta * (policy_gaps - reference_gaps), label_smoothing)


def aot_unpaired(scores: PairScores, *, beta: float, label_smoothing: float) -> mx.array:
    """-(1 - e) ls(beta d) - e ls(-beta d) with d = sort(w) - sort(l), [B] by rank, nats.

    Melnyk et al. 2024, arXiv 2406.05882, unpaired version; ln 2 in each rank where policy = reference.
    """
    return smoothed_logistic(beta * (mx.sort(scores.w) - mx.sort(scores.l)), label_smoothing)
