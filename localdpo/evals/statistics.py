"""What a set of judged prompts says, and how surely. Pure functions of NumPy arrays.

n prompts, each with one score s in [0, 1] for the first of two models: 1 it was preferred, 0 the other was,
1/2 neither. A score is the mean over both orders of the answers, so 1/4 and 3/4 occur. Swapping the models
turns s into 1 - s, and every function here answers accordingly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import bdtr, expit, ndtr, ndtri, stdtrit

from localdpo.core.text import counted

Floats: TypeAlias = "NDArray[np.float64]"

CONFIDENCE: Final = 0.95
POWER: Final = 0.8
# The normal quantiles of a two-sided interval (1.96), and of the power of a test.
_Z: Final = float(ndtri(0.5 + CONFIDENCE / 2))
_Z_POWER: Final = float(ndtri(POWER))
RESAMPLES: Final = 10_000
STRENGTH_RESAMPLES: Final = 1000
# Weight of ridge/2 w^2 in logistic models, which keeps them finite when one model wins everything.
RIDGE: Final = 0.01
# Below this many prompts a bootstrap has too few different resamples to say anything.
FEWEST_RESAMPLED: Final = 10
# The rate at equal lengths takes so many prompts, and this share of them with each of the two answers longer.
FEWEST_LENGTHS: Final = 100
SMALLEST_SIDE: Final = 0.1
# Newton's method: steps at most, and the step that is as good as none.
_STEPS: Final = 200
_EXACT: Final = 1e-10
# Resamples times prompts in memory at once: 32 MiB of float64.
_BLOCK: Final = 2**22


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its interval at CONFIDENCE. `low` and `high` are None where there is none to give."""

    value: float
    low: float | None
    high: float | None

    def excludes(self, point: float) -> bool:
        """Whether the interval lies on one side of `point`."""
        return self.low is not None and self.high is not None and not self.low <= point <= self.high


def wilson(rate: float, n: int) -> Estimate:
    """The interval of a rate on n trials, after Wilson (1927), "Probable inference".

        centre = (p + z^2/2n) / (1 + z^2/n),  half = z/(1 + z^2/n) sqrt(p(1-p)/n + z^2/4n^2)

    With ties as halves p is a mean of values that vary less than 0 and 1 do, so the interval is if anything
    too wide. Raises ValueError for n < 1 and for a rate outside [0, 1].
    """
    if n < 1 or not 0 <= rate <= 1:
        raise ValueError(f"wilson needs n >= 1 and a rate in [0, 1], got n={n} and {rate}")
    z2 = _Z**2
    scale = 1 + z2 / n
    half = math.sqrt(z2) / scale * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n * n))
    centre = (rate + z2 / (2 * n)) / scale
    return Estimate(rate, max(0.0, centre - half), min(1.0, centre + half))


def win_rate(scores: ArrayLike) -> Estimate:
    """The mean of scores [n] with its Wilson interval. Raises ValueError for no scores."""
    s = _scores(scores)
    return wilson(float(s.mean()), len(s))


def sign_test(scores: ArrayLike) -> float:
    """The two-sided p of winning so many more prompts than losing: the exact test of #(s > 1/2) in
    #(s != 1/2) against 1/2. Of this symmetric distribution both tails are twice the shorter one.
    """
    s = _scores(scores)
    wins, losses = int((s > 0.5).sum()), int((s < 0.5).sum())
    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5)))


def prompts_needed(rate: float) -> int | None:
    """How many prompts it takes to tell a true win rate of `rate` from one half.

        n = ((z_conf / 2 + z_power sqrt(p(1-p))) / (p - 1/2))^2

    (Fleiss, "Statistical Methods for Rates and Proportions", one proportion against a fixed one): with so
    many prompts the interval excludes one half in POWER of all repetitions. None for a rate of one half.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"a rate lies in [0, 1], got {rate}")
    effect = abs(rate - 0.5)
    if effect == 0:
        return None
    spread = _Z / 2 + _Z_POWER * math.sqrt(rate * (1 - rate))
    # A few ulps of an effect such as 0.62 - 0.5 must not add a prompt to a whole number.
    return max(1, math.ceil((spread / effect) ** 2 - 1e-9))


def position_bias(first: ArrayLike, second: ArrayLike) -> Estimate | None:
    """How much more often than half the answer shown first is preferred: P(first | no tie) - 1/2.

    Args:
        first, second: [n] each, counts per prompt of verdicts for the answer shown first, shown second
            (0, 1 or 2 of the prompt's two orders).

    The interval is Wilson's on the number of prompts with a verdict that is no tie, not on that of verdicts:
    the two verdicts of a prompt hang together. None if every verdict is a tie.
    """
    for_first = np.asarray(first, dtype=np.float64)
    for_second = np.asarray(second, dtype=np.float64)
    if for_first.shape != for_second.shape or for_first.ndim != 1:
        raise ValueError("position_bias needs two lists of one length")
    decided = for_first + for_second
    if not decided.sum():
        return None
    rate = wilson(float(for_first.sum() / decided.sum()), int((decided > 0).sum()))
    assert rate.low is not None
    assert rate.high is not None
    return Estimate(rate.value - 0.5, rate.low - 0.5, rate.high - 0.5)


def paired_difference(
    first: ArrayLike, second: ArrayLike, *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """The mean of second - first [n] over the same prompts, with an expanded percentile bootstrap interval.

    Prompts are drawn with replacement; the tails are cut at

        Phi(-sqrt(n / (n - 1)) t(n - 1))

    instead of 2.5%, since plain percentiles are too narrow for few prompts (Hesterberg, 2015, "What Teachers
    Should Know About the Bootstrap"). The same seed gives the same interval; under FEWEST_RESAMPLED prompts
    there is none. Raises ValueError for lists of unequal length or none.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"paired_difference needs two lists of one length, got {a.shape} and {b.shape}")
    difference, n = b - a, len(a)
    value = float(difference.mean())
    if n < FEWEST_RESAMPLED:
        return Estimate(value, None, None)
    means = bootstrap_sums(difference[:, None], seed=seed, resamples=resamples)[:, 0] / n
    tail = ndtr(-math.sqrt(n / (n - 1)) * stdtrit(n - 1, 0.5 + CONFIDENCE / 2))
    low, high = percentiles(means, 1 - 2 * float(tail))
    return Estimate(value, float(low), float(high))


def bootstrap_sums(values: ArrayLike, *, seed: int, resamples: int = RESAMPLES) -> Floats:
    """Sums over rows of `values` [n, k], drawn with replacement n at a time: [resamples, k]."""
    rows = np.asarray(values, dtype=np.float64)
    n = len(rows)
    rng = np.random.Generator(np.random.PCG64(seed))
    block = max(1, _BLOCK // n)
    parts = []
    for start in range(0, resamples, block):
        counts = rng.multinomial(n, np.full(n, 1 / n), size=min(block, resamples - start))
        parts.append(counts @ rows)
    return np.concatenate(parts)


def percentiles(draws: ArrayLike, confidence: float = CONFIDENCE) -> Floats:
    """Lower and upper end of the central `confidence` of draws [m, ...]: [2, ...]."""
    tail = (1 - confidence) / 2
    ends: Floats = np.quantile(np.asarray(draws, dtype=np.float64), [tail, 1 - tail], axis=0)
    return ends


def strengths(wins: ArrayLike, ridge: float = RIDGE) -> Floats:
    """Bradley-Terry strengths theta of each model (Bradley and Terry, 1952); the first is the base, with 0.

        P(i preferred to j) = sigmoid(theta_i - theta_j), a tie counts as half a win for each.

    So a strength reads as the logit of winning against the base.

    Args:
        wins: [..., m, m]; wins[i, j] is how often i was preferred to j, ties counted as 1/2 in both. Leading
            axes are separate problems.
        ridge: see RIDGE.

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


def ranking(wins: ArrayLike, *, seed: int = 0, resamples: int = STRENGTH_RESAMPLES) -> list[Estimate]:
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
    theta = strengths(tables.sum(axis=0))
    sums = bootstrap_sums(tables.reshape(n, -1), seed=seed, resamples=resamples)
    low, high = percentiles(strengths(sums.reshape(-1, models, models)))
    return [Estimate(float(theta[i]), float(low[i]), float(high[i])) for i in range(models)]


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """The length-controlled rate, or why there is none in `refused`. `phi` is the pull of length (logits)."""

    rate: Estimate | None
    phi: float | None
    refused: str = ""


def length_controlled(scores: ArrayLike, difference: ArrayLike) -> LengthControlled:
    """The win rate that is left when the two answers are equally long.

    After Dubois et al. (2024), "Length-Controlled AlpacaEval": a logistic model of the score with the
    difference in length as a second cause, read off where that difference is 0.

    Args:
        scores: [n] in [0, 1] for the first model.
        difference: [n], its answer's length less the other's, in any unit.

    Refused under FEWEST_LENGTHS prompts, and when fewer than SMALLEST_SIDE of the prompts have the first
    model's answer longer, or shorter: the rate at equal lengths would be a guess beyond the data.
    """
    s, d = np.asarray(scores, dtype=np.float64), np.asarray(difference, dtype=np.float64)
    if s.shape != d.shape or s.ndim != 1:
        raise ValueError(f"expected one length difference for each score, got {s.shape} and {d.shape}")
    if len(s) < FEWEST_LENGTHS:
        return LengthControlled(
            None, None, f"{counted(len(s), 'prompt')}; it needs at least {FEWEST_LENGTHS}"
        )
    longer, shorter = float((d > 0).mean()), float((d < 0).mean())
    if min(longer, shorter) < SMALLEST_SIDE:
        which = "shorter" if shorter < longer else "longer"
        share = 100 * min(longer, shorter)
        return LengthControlled(
            None, None, f"only {share:.0f}% of the answers are {which}; it needs {100 * SMALLEST_SIDE:.0f}%"
        )
    weights, covariance = fit_logistic(s, np.tanh(d / d.std()))
    theta, phi = (float(w) for w in weights)
    half = _Z * float(np.sqrt(covariance[0, 0]))
    ends = (float(expit(theta - half)), float(expit(theta + half)))
    return LengthControlled(Estimate(float(expit(theta)), *ends), phi)


def fit_logistic(scores: Floats, feature: Floats, ridge: float = RIDGE) -> tuple[Floats, Floats]:
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


def quadratic_kappa(first: ArrayLike, second: ArrayLike, categories: ArrayLike) -> float | None:
    """Agreement of two raters beyond chance: Cohen's kappa with quadratic weights (Cohen, 1968).

        kappa = 1 - sum w_ij O_ij / sum w_ij E_ij,  w_ij = (i - j)^2

    Args:
        first, second: [n] ratings of the same things, every one of them in `categories`.
        categories: all ratings there are, in order; i and j are their indices.

    O are the observed shares, E the product of the raters' own shares. None where E says that no
    disagreement is possible (both always give the same one rating).
    """
    order = {value: index for index, value in enumerate(np.asarray(categories).tolist())}
    a, b = np.asarray(first).tolist(), np.asarray(second).tolist()
    if len(a) != len(b) or not a:
        raise ValueError("quadratic_kappa needs two ratings of everything, and something rated")
    if unknown := {*a, *b} - order.keys():
        raise ValueError(f"ratings outside the categories: {sorted(unknown)}")
    table = np.zeros((len(order), len(order)))
    for one, other in zip(a, b, strict=True):
        table[order[one], order[other]] += 1 / len(a)
    index = np.arange(len(order))
    weights = (index[:, None] - index[None, :]) ** 2
    expected = float((weights * np.outer(table.sum(axis=1), table.sum(axis=0))).sum())
    return None if expected == 0 else 1 - float((weights * table).sum()) / expected


def _scores(scores: ArrayLike) -> Floats:
    s = np.asarray(scores, dtype=np.float64)
    if s.ndim != 1 or not len(s):
        raise ValueError(f"expected a list of at least one score, got shape {s.shape}")
    if not ((s >= 0) & (s <= 1)).all():
        raise ValueError("every score lies in [0, 1]")
    return s
