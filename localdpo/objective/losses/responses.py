"""Losses with a term for each response: of a pair, also those without a reference, and single responses that
were found desirable or not (KTO, and APO-zero without pairs).

Notation: see `objective/scores.py`.
"""

from __future__ import annotations

import mlx.core as mx

from localdpo.objective.numerics import log_odds, log_sigmoid
from localdpo.objective.scores import PairScores, UnpairedScores


def nca_pair(scores: PairScores, *, beta: float) -> mx.array:
    """-ls(beta w) - 1/2 ls(-beta w) - 1/2 ls(-beta l), [B] nats; 2 ln 2 where policy = reference.

    Chen et al. 2024 (noise contrastive alignment), arXiv 2402.05369, the pair-wise NCA loss: the chosen
    response is data, both are noise, so the chosen one's probability is held up rather than only the margin.
    """
    chosen, rejected = beta * scores.w, beta * scores.l
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


def bco_pair(scores: PairScores, *, beta: float) -> mx.array:
    """-ls(beta w) - ls(-beta l), [B] nats; 2 ln 2 where policy = reference.

    Jung et al. 2024 (BCO), arXiv 2404.04656, with the reward shift delta at 0, as TRL's pair version has it
    today (its older versions subtracted a running mean of the rewards).
    """
    return -log_sigmoid(beta * scores.w) - log_sigmoid(-beta * scores.l)


def sppo_hard(scores: PairScores, *, beta: float) -> mx.array:
    """(w - 1/(2 beta))^2 + (l + 1/(2 beta))^2, [B] nats^2; 1/(2 beta^2) where policy = reference.

    Wu et al. 2024 (SPPO), arXiv 2405.00675, eq. 4.7 with hard labels: the chosen response wins with
    probability 1, the rejected one with 0, and beta is 1/eta.
    """
    target = 0.5 / beta
    return mx.square(scores.w - target) + mx.square(scores.l + target)


def apo_zero(scores: PairScores, *, beta: float) -> mx.array:
    """1 - s(beta w) + s(beta l), [B]; 1 where policy = reference.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, APO-zero: chosen up, rejected down. For chosen responses
    better than what the model says itself. `1 - s(x)` is computed as s(-x), which does not cancel.
    """
    return mx.sigmoid(-beta * scores.w) + mx.sigmoid(beta * scores.l)


def apo_down(scores: PairScores, *, beta: float) -> mx.array:
    """s(beta w) + 1 - s(beta h), [B]; 1 where policy = reference.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, APO-down: both down, rejected faster. For chosen responses
    worse than what the model says itself.
    """
    return mx.sigmoid(beta * scores.w) + mx.sigmoid(-beta * scores.h)


# --- without a reference -------------------------------------------------------------------------------


def simpo(scores: PairScores, *, beta: float, simpo_gamma: float) -> mx.array:
    """-ls(beta (p_w/|w| - p_l/|l|) - gamma), [B] nats.

    Meng et al. 2024, arXiv 2405.14734, eq. 6. gamma is the margin itself, not its ratio to beta.
    """
    chosen, rejected = scores.chosen, scores.rejected
    margin = chosen.policy / chosen.length - rejected.policy / rejected.length
    return -log_sigmoid(beta * margin - simpo_gamma)


def orpo(scores: PairScores, *, beta: float) -> mx.array:
    """-p_w/|w| - beta ls(log-odds(P_w) - log-odds(P_l)) with P = e^(p/|.|), [B] nats.

    Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7: the token-mean NLL of the chosen response plus the
    odds-ratio term; beta is the paper's lambda, as in TRL. P is the geometric mean of the token
    probabilities.
    """
    chosen = scores.chosen.policy / scores.chosen.length
    rejected = scores.rejected.policy / scores.rejected.length
    return -chosen - beta * log_sigmoid(log_odds(chosen) - log_odds(rejected))


def sft_of_chosen(scores: PairScores) -> mx.array:
    """-p_w/|w|, [B] nats per token: the token-mean NLL of each chosen response, a term beside other losses.

    Pang et al. 2024 (iterative RPO), arXiv 2404.19733, and Wang et al. 2024 (MPO), arXiv 2411.10442: each
    response divides by its own length, so that every pair weighs the same and micro-batches leave the loss
    as it is. (TRL divides the batch's sum by the batch's tokens, which is the same for equal lengths.)
    """
    return -scores.chosen.policy / scores.chosen.length


def sft_loss(logps: mx.array, tokens: mx.array) -> tuple[mx.array, mx.array]:
    """The token-mean NLL as two float32 scalars: (-sum of logps in nats, number of scored tokens).

    logps [B]: log-probabilities of whole responses; tokens [B]: their numbers of scored tokens. The loss of a
    step is the sum of the numerators over the sum of the denominators of its micro-batches, so every token
    weighs the same however the rows are split. ValueError for shapes that are not one and the same [B].
    """
    if logps.ndim != 1 or logps.shape != tokens.shape:
        raise ValueError(f"sft_loss: expected two arrays [B], got {logps.shape} and {tokens.shape}")
    return -logps.astype(mx.float32).sum(), tokens.astype(mx.float32).sum()


def kl_baseline(log_ratios: mx.array) -> mx.array:
    """z = max(0, mean of `log_ratios` [M]), a float32 scalar in nats a response, without gradient.

    Ethayarajh et al. 2024, arXiv 2402.01306, section 4: what KTO takes for KL(policy || reference). The exact
    one needs samples of the policy; the estimate takes ln(policy / reference) of completions that belong to
    other prompts of the batch. That mean can be below 0, which no KL is. ValueError for no log-ratios.
    """
    if log_ratios.ndim != 1 or log_ratios.size == 0:
        raise ValueError(f"kl_baseline: expected log-ratios of shape [M], M >= 1, got {log_ratios.shape}")
    return mx.stop_gradient(mx.maximum(log_ratios.astype(mx.float32).mean(), 0.0))


def kto(
    scores: UnpairedScores, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> mx.array:
    """a (1 - s(beta (h - z))) of a desirable, b (1 - s(beta (z - h))) of an undesirable response, [B].

    Ethayarajh et al. 2024, arXiv 2402.01306, section 4: h is the response's log-ratio, z the KL baseline of
    the batch (`kl_baseline`), a and b are desirable_weight and undesirable_weight (the paper's lambda_D and
    lambda_U). The value of a response saturates on both sides of z: a sample that is far off has hardly any
    gradient. a/2 and b/2 where policy = reference.
    """
    return _value_missed(scores, beta * (scores.h - scores.z), desirable_weight, undesirable_weight)


def apo_zero_unpaired(
    scores: UnpairedScores, *, beta: float, desirable_weight: float, undesirable_weight: float
) -> mx.array:
    """a (1 - s(beta h)) of a desirable, b s(beta h) of an undesirable response, [B].

    D'Oosterlinck et al. 2024, arXiv 2408.06266, APO-zero on single responses, as TRL's KTOTrainer has it: KTO
    with z = 0, so that no mismatched completions have to be scored.
    """
    return _value_missed(scores, beta * scores.h, desirable_weight, undesirable_weight)


def _value_missed(
    scores: UnpairedScores, reward: mx.array, desirable_weight: float, undesirable_weight: float
) -> mx.array:
    """weight * (1 - s(+-reward)), [B]; 1 - s(x) is computed as s(-x), which does not cancel."""
    weight = mx.where(scores.desirable, desirable_weight, undesirable_weight)
    return weight * mx.sigmoid(mx.where(scores.desirable, -reward, reward))
