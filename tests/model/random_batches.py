"""Random batches for the model tests, and their log-probabilities from one full forward a row."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from localdpo.data.batches import collate
from localdpo.data.types import Batch, EncodedRow


def random_rows(
    count: int,
    *,
    seed: int,
    prompt: tuple[int, int] = (1, 30),
    response: tuple[int, int] = (1, 12),
    responses: int = 2,
) -> list[EncodedRow]:
    """Rows of random tokens in 1..159; lengths are drawn from the closed ranges."""
    rng = np.random.default_rng(seed)

    def ids(low: int, high: int) -> np.ndarray:
        return rng.integers(1, 160, rng.integers(low, high + 1)).astype(np.int32)

    return [
        EncodedRow(i, ids(*prompt), tuple(ids(*response) for _ in range(responses))) for i in range(count)
    ]


def random_batch(count: int = 3, *, seed: int = 0, pad: int = 0, responses: int = 2) -> Batch:
    """`random_rows` as one batch."""
    return collate(random_rows(count, seed=seed, responses=responses), pad, np.arange(count))


def full_logps(model: nn.Module, rows: list[EncodedRow]) -> np.ndarray:
    """Log-probabilities [K*P] by one unpadded forward of prompt + response with full logits, a row at a time.

    The log-softmax is NumPy float64.
    """
    sums = []
    for k in range(len(rows[0].responses)):
        for row in rows:
            ids = np.concatenate([row.prompt, row.responses[k]])
            logits = np.array(model(mx.array(ids[None, :-1])).astype(mx.float32)).astype(np.float64)[0]
            top = logits.max(-1, keepdims=True)
            logps = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
            sums.append(logps[np.arange(len(ids) - 1), ids[1:]][len(row.prompt) - 1 :].sum())
    return np.array(sums)
