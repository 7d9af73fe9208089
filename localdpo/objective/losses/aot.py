"""AOT: the logistic loss on sorted scores, so that the distribution of scores is ordered and not each pair.

The k-th smallest value on one side meets the k-th smallest on the other: term k of the result belongs to a
rank in the batch, not to pair k, and the loss of a batch is not the mean of its micro-batches' losses.
"""

from __future__ import annotations

import mlx.core as mx

from localdpo.objective.losses.sigmoid import smoothed_logistic
from localdpo.objective.scores import PairScores


def aot_loss(scores: PairScores, *, beta: float, label_smoothing: float = 0.0) -> mx.array:
    """-(1 - e) ls(beta d) - e ls(-beta d) with d = sort(p_w - p_l) - sort(r_w - r_l), [B] by rank, nats.

    Melnyk et al. 2024, arXiv 2406.05882, paired version; ln 2 in each rank where policy = reference.
    """
    policy = mx.sort(scores.policy_chosen - scores.policy_rejected)
    reference = mx.sort(scores.ref_chosen - scores.ref_rejected)
    return smoothed_logistic(beta * (policy - reference), label_smoothing)


def aot_unpaired_loss(scores: PairScores, *, beta: float, label_smoothing: float = 0.0) -> mx.array:
    """-(1 - e) ls(beta d) - e ls(-beta d) with d = sort(w) - sort(l), [B] by rank, nats.

    Melnyk et al. 2024, arXiv 2406.05882, unpaired version; ln 2 in each rank where policy = reference.
    """
    return smoothed_logistic(beta * (mx.sort(scores.w) - mx.sort(scores.l)), label_smoothing)
