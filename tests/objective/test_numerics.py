"""log-sigmoid and log(1 - e^x) against their float64 forms, with their gradients, over the whole range."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from scipy.special import expit

from localdpo.objective.numerics import LOG_PROB_MAX, log1mexp, log_sigmoid


def test_log_sigmoid_and_its_gradient():
    x = np.concatenate([-np.logspace(5, -6, 300), [0.0], np.logspace(-6, 5, 300)]).astype(np.float32)
    wide = x.astype(np.float64)
    expected = np.minimum(wide, 0) - np.log1p(np.exp(-np.abs(wide)))
    np.testing.assert_allclose(np.array(log_sigmoid(mx.array(x))), expected, rtol=1e-5, atol=1e-37)
    slope = mx.grad(lambda v: log_sigmoid(v).sum())(mx.array(x))
    np.testing.assert_allclose(np.array(slope), expit(-wide), rtol=2e-5, atol=1e-37)
    assert mx.grad(log_sigmoid)(mx.array(0.0)).item() == 0.5


def test_log1mexp_and_its_gradient():
    x = -np.logspace(-5.9, 1.8, 500).astype(np.float32)
    wide = x.astype(np.float64)
    expected = np.where(wide > -0.5, np.log(-np.expm1(wide)), np.log1p(-np.exp(wide)))
    np.testing.assert_allclose(np.array(log1mexp(mx.array(x))), expected, rtol=1e-5)
    slope = mx.grad(lambda v: log1mexp(v).sum())(mx.array(x))
    np.testing.assert_allclose(np.array(slope), -1 / np.expm1(-wide), rtol=1e-5)


def test_log1mexp_is_finite_at_certainty_and_far_below():
    x = mx.array([0.0, 1e-3, LOG_PROB_MAX, -1e-12, -87.0, -200.0, -1e30])
    assert np.all(np.isfinite(np.array(log1mexp(x))))
    assert np.all(np.isfinite(np.array(mx.grad(lambda v: log1mexp(v).sum())(x))))
