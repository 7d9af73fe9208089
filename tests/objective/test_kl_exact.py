"""Exact KL and entropy over the vocabulary against float64 NumPy, and the estimate from samples."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from scipy.special import entr, log_softmax

from localdpo.objective.numerics import entropy_per_token, kl_per_token, sequence_kl


def oracle(policy, reference):
    p = log_softmax(np.asarray(policy, dtype=np.float64), axis=-1)
    q = log_softmax(np.asarray(reference, dtype=np.float64), axis=-1)
    return (np.exp(p) * (p - q)).sum(-1)


def test_matches_float64():
    rng = np.random.default_rng(0)
    policy = rng.normal(0, 3, (1000, 50)).astype(np.float32)
    reference = (policy + rng.normal(0, 1, policy.shape)).astype(np.float32)
    got = kl_per_token(mx.array(policy), mx.array(reference))
    assert got.shape == (1000,)
    assert got.dtype == mx.float32
    np.testing.assert_allclose(np.array(got), oracle(policy, reference), rtol=1e-5, atol=1e-6)


def test_zero_for_equal_and_for_shifted_logits_and_never_negative():
    logits = mx.array(np.random.default_rng(1).normal(0, 5, (64, 500)).astype(np.float32))
    for other in (logits, logits + 3.0):
        kl = np.array(kl_per_token(logits, other))
        assert np.all(kl >= 0)
        np.testing.assert_allclose(kl, 0, atol=1e-5)


def test_the_direction_is_policy_first():
    policy, reference = mx.array([[0.0, -30.0]]), mx.array([[0.0, 0.0]])
    assert kl_per_token(policy, reference).item() == pytest.approx(np.log(2), rel=1e-5)
    assert kl_per_token(reference, policy).item() == pytest.approx(15 - np.log(2), rel=1e-5)


@pytest.mark.parametrize("size", [1e3, 1e30])
def test_finite_for_logits_of_any_size(size):
    policy = mx.array([[size, 0.0, -size], [-size, -size, -size]])
    reference = mx.array([[-size, 0.0, size], [size, size, size]])
    kl = np.array(kl_per_token(policy, reference))
    assert np.all(np.isfinite(kl))
    assert kl[0] == pytest.approx(2 * size, rel=1e-6)
    assert kl[1] == 0.0


def test_bfloat16_logits_are_reduced_in_float32():
    rng = np.random.default_rng(2)
    policy, reference = (mx.array(rng.normal(0, 3, (8, 4000))).astype(mx.bfloat16) for _ in range(2))
    wide = [np.array(a.astype(mx.float32)) for a in (policy, reference)]
    np.testing.assert_allclose(np.array(kl_per_token(policy, reference)), oracle(*wide), rtol=1e-5)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        kl_per_token(mx.zeros((2, 5)), mx.zeros((1, 5)))


def test_entropy_matches_float64_from_certain_to_uniform():
    logits = np.random.default_rng(2).normal(0, 1, (300, 40)) * np.logspace(-3, 4, 300)[:, None]
    logits = logits.astype(np.float32)
    got = np.array(entropy_per_token(mx.array(logits)))
    expected = entr(np.exp(log_softmax(logits.astype(np.float64), axis=-1))).sum(-1)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert got.min() >= 0
    np.testing.assert_allclose(entropy_per_token(mx.zeros((1, 40))).item(), np.log(40), rtol=1e-6)


def test_sequence_kl_is_the_mean_with_its_standard_error():
    ratios = np.random.default_rng(3).normal(2, 5, 50)
    mean, error = sequence_kl(ratios.tolist())
    assert (mean, error) == pytest.approx((ratios.mean(), ratios.std(ddof=1) / np.sqrt(50)))
    assert sequence_kl([-0.5]) == (-0.5, None)
    with pytest.raises(ValueError, match="one or more"):
        sequence_kl([])
