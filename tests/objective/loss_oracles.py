"""Float64 NumPy oracles, written from the papers' equations and not from the code under test.

Each takes (pw, pl, rw, rl, nw, nl, **options): log-probabilities of chosen and rejected responses under
policy and reference, and their token counts, arrays [..., B]; sorting losses sort along the last axis.
"""

from __future__ import annotations

import numpy as np

from localdpo.objective.losses import unpaired_losses
from localdpo.objective.registry import loss_sum
from localdpo.objective.scores import ResponseScores, UnpairedScores


def sigma(x):
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def log_sigma(x):
    return np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x)))


def score(p, r, f_divergence="reverse_kl", f_alpha=0.5):
    """f-DPO: f'(u) less f'(1), u = pi/ref, with f(u) = u ln u, -ln u, JS, and the alpha divergence."""
    u = np.exp(p - r)
    if f_divergence == "reverse_kl":  # f' = ln u + 1
        return p - r
    if f_divergence == "forward_kl":  # f' = -1/u
        return -1 / u + 1
    if f_divergence == "js":  # f = u ln u - (u + 1) ln((u + 1)/2), f' = ln(2u/(1 + u))
        return np.log(2 * u / (1 + u))
    return (u ** (f_alpha - 1) - 1) / (f_alpha - 1)


def sigmoid(pw, pl, rw, rl, nw, nl, *, beta, label_smoothing=0.0, reference_free=False, **f):
    # DPO eq. 7: the reward of y is beta ln(pi/ref); cDPO eq. 3: cross-entropy with target 1 - e.
    reward_w = beta * (pw if reference_free else score(pw, rw, **f))
    reward_l = beta * (pl if reference_free else score(pl, rl, **f))
    win, lose = log_sigma(reward_w - reward_l), log_sigma(reward_l - reward_w)
    return -((1 - label_smoothing) * win + label_smoothing * lose)


def ipo(pw, pl, rw, rl, nw, nl, *, beta, reference_free=False):
    keep = 0.0 if reference_free else 1.0
    h = (pw / nw - pl / nl) - keep * (rw / nw - rl / nl)
    return (h - 1 / (2 * beta)) ** 2


def ipo_sum(pw, pl, rw, rl, nw, nl, *, beta, reference_free=False):
    # IPO eq. 17: h = ln [pi(yw) ref(yl)] / [pi(yl) ref(yw)], tau = beta.
    keep = 0.0 if reference_free else 1.0
    h = (pw + keep * rl) - (pl + keep * rw)
    return (h - 1 / (2 * beta)) ** 2


def hinge(pw, pl, rw, rl, nw, nl, *, beta, reference_free=False, **f):
    margin = beta * (pw - pl if reference_free else score(pw, rw, **f) - score(pl, rl, **f))
    return np.where(margin < 1, 1 - margin, 0.0)


def robust(pw, pl, rw, rl, nw, nl, *, beta, label_smoothing=0.0, **f):
    # rDPO eq. 12: [(1 - e) L(yw, yl) - e L(yl, yw)] / (1 - 2e), L the DPO loss.
    e = label_smoothing
    clean = sigmoid(pw, pl, rw, rl, nw, nl, beta=beta, **f)
    flipped = sigmoid(pl, pw, rl, rw, nl, nw, beta=beta, **f)
    return ((1 - e) * clean - e * flipped) / (1 - 2 * e)


def exo_pair(pw, pl, rw, rl, nw, nl, *, beta, label_smoothing, **f):
    # EXO, K = 2: KL( softmax(beta ln pi/ref) || (1 - e, e) ).
    logits = beta * np.stack([score(pw, rw, **f), score(pl, rl, **f)])
    log_p = logits - np.logaddexp(logits[0], logits[1])
    log_q = np.log([1 - label_smoothing, label_smoothing]).reshape(2, *([1] * np.ndim(pw)))
    return (np.exp(log_p) * (log_p - log_q)).sum(0)


def nca_pair(pw, pl, rw, rl, nw, nl, *, beta):
    w, lo = beta * (pw - rw), beta * (pl - rl)
    return -log_sigma(w) - (log_sigma(-w) + log_sigma(-lo)) / 2


def bco_pair(pw, pl, rw, rl, nw, nl, *, beta):
    # Binary cross-entropy: chosen is class 1, rejected class 0.
    return np.logaddexp(0, -beta * (pw - rw)) + np.logaddexp(0, beta * (pl - rl))


def sppo_hard(pw, pl, rw, rl, nw, nl, *, beta):
    # SPPO eq. 4.7: (ln pi/ref - eta (P(y wins) - 1/2))^2 with eta = 1/beta, P = 1 for chosen, 0 for rejected.
    eta = 1 / beta
    return (pw - rw - eta * (1 - 0.5)) ** 2 + (pl - rl - eta * (0 - 0.5)) ** 2


def _smoothed(x, e):
    return (1 - e) * np.logaddexp(0, -x) + e * np.logaddexp(0, x)


def aot(pw, pl, rw, rl, nw, nl, *, beta, label_smoothing=0.0):
    gap = np.sort(pw - pl, axis=-1) - np.sort(rw - rl, axis=-1)
    return _smoothed(beta * gap, label_smoothing)


def aot_unpaired(pw, pl, rw, rl, nw, nl, *, beta, label_smoothing=0.0):
    gap = np.sort(pw - rw, axis=-1) - np.sort(pl - rl, axis=-1)
    return _smoothed(beta * gap, label_smoothing)


def apo_zero(pw, pl, rw, rl, nw, nl, *, beta):
    return -sigma(beta * (pw - rw)) + sigma(beta * (pl - rl)) + 1


def apo_down(pw, pl, rw, rl, nw, nl, *, beta):
    return sigma(beta * (pw - rw)) - sigma(beta * ((pw - rw) - (pl - rl))) + 1


def discopop(pw, pl, rw, rl, nw, nl, *, beta, discopop_tau=0.05, **f):
    # LRML: (1 - m) * logistic + m * exponential, with m = sigma(rho / tau); e^-rho alone may overflow.
    rho = beta * (score(pw, rw, **f) - score(pl, rl, **f))
    m = sigma(rho / discopop_tau)
    return (1 - m) * np.logaddexp(0, -rho) + np.exp(log_sigma(rho / discopop_tau) - rho)


def sigmoid_norm(pw, pl, rw, rl, nw, nl, *, beta):
    return np.logaddexp(0, -(beta / nw * (pw - rw) - beta / nl * (pl - rl)))


def dpop(pw, pl, rw, rl, nw, nl, *, beta, dpop_lambda=50.0):
    # DPOP eq. 3: -ln sigma( beta ( ln ratio_w - ln ratio_l - lambda max(0, ln ref_w/pi_w) ) )
    inner = (pw - rw) - (pl - rl) - dpop_lambda * np.maximum(0, rw - pw)
    return -log_sigma(beta * inner)


def r_dpo(pw, pl, rw, rl, nw, nl, *, beta, r_dpo_alpha=0.01, **f):
    # Reward of y with its length: beta ln(pi/ref) + alpha |y|.
    reward_w = beta * score(pw, rw, **f) + r_dpo_alpha * nw
    reward_l = beta * score(pl, rl, **f) + r_dpo_alpha * nl
    return -log_sigma(reward_w - reward_l)


def simpo(pw, pl, rw, rl, nw, nl, *, beta, simpo_gamma=0.5):
    return -log_sigma(beta / nw * pw - beta / nl * pl - simpo_gamma)


def orpo(pw, pl, rw, rl, nw, nl, *, beta):
    # ORPO eq. 3-7: odds = P / (1 - P), L = NLL + lambda * -ln sigma(ln odds_w / odds_l).
    p_w, p_l = np.exp(pw / nw), np.exp(pl / nl)
    odds_ratio = (p_w / (1 - p_w)) / (p_l / (1 - p_l))
    return -np.log(p_w) - beta * log_sigma(np.log(odds_ratio))


ORACLES = {
    f.__name__: f
    for f in (
        sigmoid, ipo, ipo_sum, hinge, robust, exo_pair, nca_pair, bco_pair, sppo_hard, aot, aot_unpaired,
        apo_zero, apo_down, discopop, sigmoid_norm, dpop, r_dpo, simpo, orpo,
    )
}  # fmt: skip

# Options of the random cases, drawn evenly from these ranges.
OPTION_RANGES = {
    "beta": (0.02, 1.0),
    "label_smoothing": (0.01, 0.4),
    "discopop_tau": (0.05, 1.0),
    "dpop_lambda": (0.5, 10.0),
    "r_dpo_alpha": (0.001, 0.2),
    "simpo_gamma": (0.0, 2.0),
}


def random_options(names, rng):
    drawn = {n: float(rng.uniform(*OPTION_RANGES[n])) for n in names if n in OPTION_RANGES}
    if "reference_free" in names:
        drawn["reference_free"] = bool(rng.integers(2))
    return drawn


def random_pairs(rng, shape):
    """Six float32 arrays: 1 to 60 tokens at -0.05 to -3 nats each, log-ratios of a few nats."""
    tokens = rng.integers(1, 61, (2, *shape)).astype(np.float32)
    reference = (-rng.uniform(0.05, 3.0, (2, *shape)) * tokens).astype(np.float32)
    policy = np.minimum(reference + rng.normal(0, 3, (2, *shape)), -0.02 * tokens).astype(np.float32)
    return policy[0], policy[1], reference[0], reference[1], tokens[0], tokens[1]


def finite_differences(oracle, arrays, options, step=1e-5):
    """d(sum over the last axis)/d(pw) and /d(pl) by central differences in float64, [..., B] each."""
    arrays = [np.asarray(a, dtype=np.float64) for a in arrays]
    gradients = []
    for position in (0, 1):
        columns = []
        for column in range(arrays[0].shape[-1]):
            bump = np.zeros_like(arrays[position])
            bump[..., column] = step
            up, down = ([a + s * bump if i == position else a for i, a in enumerate(arrays)] for s in (1, -1))
            columns.append((oracle(*up, **options) - oracle(*down, **options)).sum(-1) / (2 * step))
        gradients.append(np.stack(columns, axis=-1))
    return gradients


def unpaired_loss(name, policy, reference, desirable, *, baseline=None, beta=0.1, weights=None, **options):
    """`unpaired_losses` of arrays."""
    scores = UnpairedScores(ResponseScores(policy, reference), desirable, baseline)
    return unpaired_losses(loss_sum(name, weights), scores, {"beta": beta, **options})
