"""Supervised fine-tuning: the negative log-likelihood of demonstrations."""

from __future__ import annotations

import mlx.core as mx


def sft_loss(logps: mx.array, tokens: mx.array) -> tuple[mx.array, mx.array]:
    """The token-mean NLL as two float32 scalars: (-sum of logps in nats, number of scored tokens).

    logps [B]: log-probabilities of whole responses; tokens [B]: their numbers of scored tokens. The loss of a
    step is the sum of the numerators over the sum of the denominators of its micro-batches, so every token
    weighs the same however the rows are split. ValueError for shapes that are not one and the same [B].
    """
    if logps.ndim != 1 or logps.shape != tokens.shape:
        raise ValueError(f"sft_loss: expected two arrays [B], got {logps.shape} and {tokens.shape}")
    return -logps.astype(mx.float32).sum(), tokens.astype(mx.float32).sum()
