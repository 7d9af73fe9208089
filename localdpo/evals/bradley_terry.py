"""One strength for each model from all pairwise comparisons: Bradley and Terry (1952).

    P(i preferred to j) = sigmoid(theta_i - theta_j), a tie counts as half a win for each.

The base model's theta is fixed at 0, so a strength reads as the logit of winning against the base.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from localdpo.evals.statistics import Estimate, Floats, bootstrap_sums, percentiles

RIDGE: Final = 0.01
RESAMPLES: Final = 1000
_STEPS: Final = 200
_EXACT: Final = 1e-10


def strengths(wins: ArrayLike, ridge: float = RIDGE) -> Floats:
    """theta of each model; the first is the base, with theta 0.

    Args:
        wins: [..., m, m]; wins[i, j] is how often i was preferred to j, ties counted as 1/2 in both. Leading
            axes are separate problems.
        ridge: weight of ridge/2 theta^2, which keeps a model that won everything finite.

    Returns [..., m]. Newton's method on the log-likelihood, which is concave.
    """
    counts = np.asarray(wins, dtype=np.float64)
    models = counts.shape[-1]
    if counts.ndim < 2 or counts.shape[-2] != models or models < 2:
        raise ValueError(f"expected square tables of two or more models, got shape {counts.shape}")
    games = counts + np.swapaxes(counts, -1, -2)
    theta = np.zeros(counts.shape[:-1])
    free = slice(1, None)
    for _ in range(_STEPS):
        p = expit(theta[..., :, None] - theta[..., None, :])
        gradient = (counts - games * p).sum(axis=-1) - ridge * theta
        spread = games * p * (1 - p)
        hessian = -spread
        diagonal = np.arange(models)
        hessian[..., diagonal, diagonal] += spread.sum(axis=-1) + ridge
        step = np.linalg.solve(hessian[..., free, free], gradient[..., free, None])[..., 0]
        largest = np.abs(step).max(axis=-1, keepdims=True)
        theta[..., free] += step * np.minimum(1.0, 2.0 / np.maximum(largest, 1e-300))
        if float(largest.max()) < _EXACT:
            break
    return theta


def ranking(wins: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES) -> list[Estimate]:
    """The strength of each model with a bootstrap interval over prompts.

    Args:
        wins: [n, m, m], the table of `strengths` for each prompt. A comparison that has no valid verdict is 0
            in both directions.

    The base's interval is [0, 0]: it is the yardstick. Raises ValueError for no prompts.
    """
    tables = np.asarray(wins, dtype=np.float64)
    if tables.ndim != 3 or not len(tables):
        raise ValueError(f"expected [prompts, models, models], got shape {tables.shape}")
    n, models, _ = tables.shape
    found = strengths(tables.sum(axis=0))
    sums = bootstrap_sums(tables.reshape(n, -1), seed=seed, resamples=resamples)
    low, high = percentiles(strengths(sums.reshape(-1, models, models)))
    return [Estimate(float(found[i]), float(low[i]), float(high[i])) for i in range(models)]
