"""The win rate that is left when the two answers are equally long.

After Dubois et al. (2024), "Length-Controlled AlpacaEval": a logistic model of the score with the difference
in length as a second cause, read off where that difference is 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit

from localdpo.evals.statistics import Estimate, Floats, quantile

FEWEST_PROMPTS: Final = 100
SMALLEST_SIDE: Final = 0.1
RIDGE: Final = 0.01
_STEPS: Final = 100
_EXACT: Final = 1e-10


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """The length-controlled rate, or why there is none in `refused`. `phi` is the pull of length (logits)."""

    rate: Estimate | None
    phi: float | None
    refused: str = ""


def length_controlled(scores: ArrayLike, difference: ArrayLike) -> LengthControlled:
    """The rate at equal lengths.

    Args:
        scores: [n] in [0, 1] for the first model.
        difference: [n], its answer's length less the other's, in any unit.

    Refused under FEWEST_PROMPTS prompts, and when fewer than SMALLEST_SIDE of the prompts have the first
    model's answer longer, or shorter: the rate at equal lengths would be a guess beyond the data.
    """
    s, d = np.asarray(scores, dtype=np.float64), np.asarray(difference, dtype=np.float64)
    if s.shape != d.shape or s.ndim != 1:
        raise ValueError(f"expected one length difference for each score, got {s.shape} and {d.shape}")
    if len(s) < FEWEST_PROMPTS:
        return LengthControlled(None, None, f"{len(s)} prompts; it needs at least {FEWEST_PROMPTS}")
    longer, shorter = float((d > 0).mean()), float((d < 0).mean())
    if min(longer, shorter) < SMALLEST_SIDE:
        which = "shorter" if shorter < longer else "longer"
        share = 100 * min(longer, shorter)
        return LengthControlled(
            None, None, f"only {share:.0f}% of the answers are {which}; it needs {100 * SMALLEST_SIDE:.0f}%"
        )
    weights, covariance = fit(s, np.tanh(d / d.std()))
    theta, phi = (float(w) for w in weights)
    half = quantile() * float(np.sqrt(covariance[0, 0]))
    ends = (float(expit(theta - half)), float(expit(theta + half)))
    return LengthControlled(Estimate(float(expit(theta)), *ends), phi)


def fit(scores: Floats, feature: Floats, ridge: float = RIDGE) -> tuple[Floats, Floats]:
    """(theta, phi) [2] of logit s = theta + phi x, and their covariance [2, 2].

    Maximises sum s log p + (1 - s) log(1 - p) - ridge/2 (theta^2 + phi^2) by Newton's method; the ridge keeps
    the maximum finite when one model wins everything. The covariance is the inverse of the negative Hessian:
    as if scores varied as 0 and 1 do, so with ties it is if anything too wide, as Wilson's interval is (the
    residuals' own spread would shrink to nothing where one model wins nearly everything).
    """
    design = np.stack([np.ones_like(feature), feature], axis=1)
    weights = np.zeros(2)
    for _ in range(_STEPS):
        p = expit(design @ weights)
        gradient = design.T @ (scores - p) - ridge * weights
        hessian = (design * (p * (1 - p))[:, None]).T @ design + ridge * np.eye(2)
        # A step of more than 2 logits overshoots when the data are nearly separable.
        step = np.linalg.solve(hessian, gradient)
        weights = weights + step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-300))
        if float(np.abs(step).max()) < _EXACT:
            break
    return weights, np.linalg.inv(hessian)
