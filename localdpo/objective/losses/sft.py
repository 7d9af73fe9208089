"""Supervised fine-tuning: the negative log-likelihood of demonstrations, or of the chosen responses."""

from __future__ import annotations

import mlx.core as mx

from localdpo.objective.scores import PairScores


def sft_loss(logps: mx.array, tokens: mx.array) -> tuple[mx.array, mx.array]:
    """The token-mean NLL as two float32 scalars: (-sum of logps in nats, number of scored tokens).

    logps [B]: log-probabilities of whole responses; tokens [B]: their numbers of scored tokens. The loss of a
    step is the sum of the numerators over the sum of the denominators of its micro-batches, so every token
    weighs the same however the rows are split. ValueError for shapes that are not one and the same [B].
    """
    if logps.ndim != 1 or logps.shape != tokens.shape:
        raise ValueError(f"sft_loss: expected two arrays [B], got {logps.shape} and {tokens.shape}")
    return -logps.astype(mx.float32).sum(), tokens.astype(mx.float32).sum()


def sft_term(scores: PairScores) -> mx.array:
    """-p_w/|w|, [B] nats per token: the token-mean NLL of each chosen response, a term beside other losses.

    Pang et al. 2024 (iterative RPO), arXiv 2404.19733, and Wang et al. 2024 (MPO), arXiv 2411.10442: each
    response divides by its own length, so that every pair weighs the same and micro-batches leave the loss
    as it is. (TRL divides the batch's sum by the batch's tokens, which is the same for equal lengths.)
    """
    chosen_tokens, _ = scores.token_counts
    return -scores.policy_chosen / chosen_tokens
