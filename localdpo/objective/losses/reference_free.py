"""Losses without a reference model: SimPO and ORPO."""

from __future__ import annotations

import mlx.core as mx

from localdpo.objective.numerics import LOG_PROB_MAX, log1mexp, log_sigmoid
from localdpo.objective.scores import PairScores


def simpo_loss(scores: PairScores, *, beta: float, simpo_gamma: float = 0.5) -> mx.array:
    """-ls(beta (p_w/|w| - p_l/|l|) - gamma), [B] nats.

    Meng et al. 2024, arXiv 2405.14734, eq. 6. gamma is the margin itself, not its ratio to beta.
    """
    chosen_tokens, rejected_tokens = scores.token_counts
    margin = scores.policy_chosen / chosen_tokens - scores.policy_rejected / rejected_tokens
    return -log_sigmoid(beta * margin - simpo_gamma)


def _log_odds(mean_logp: mx.array) -> mx.array:
    """ln(P / (1 - P)) for P = e^mean_logp < 1."""
    clamped = mx.minimum(mean_logp, LOG_PROB_MAX)
    return clamped - log1mexp(clamped)


def orpo_loss(scores: PairScores, *, beta: float) -> mx.array:
    """-p_w/|w| - beta ls(log-odds(P_w) - log-odds(P_l)) with P = e^(p/|.|), [B] nats.

    Hong et al. 2024, arXiv 2403.07691, eq. 6 and 7: the token-mean NLL of the chosen response plus the
    odds-ratio term; beta is the paper's lambda, as in TRL. P is the geometric mean of the token
    probabilities; it is held just below 1, where the odds would be infinite.
    """
    chosen_tokens, rejected_tokens = scores.token_counts
    chosen, rejected = scores.policy_chosen / chosen_tokens, scores.policy_rejected / rejected_tokens
    return -chosen - beta * log_sigmoid(_log_odds(chosen) - _log_odds(rejected))
