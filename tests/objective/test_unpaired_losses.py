"""Losses on single responses with a label against float64 NumPy written from the papers' equations."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from loss_oracles import unpaired_loss

from localdpo.objective.losses import preference_loss
from localdpo.objective.losses.responses import kl_baseline
from localdpo.objective.registry import LOSSES

UNPAIRED = sorted(name for name, spec in LOSSES.items() if spec.data == "unpaired")
BATCHES, BATCH = 125, 8  # 1,000 cases, each batch with options of its own
ATOL = 2e-7
BETA = 0.1


def sigma(x):
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def kto(p, r, good, z, *, beta, desirable_weight=1.0, undesirable_weight=1.0):
    # lambda_y - v(x, y), v = lambda_D sigma(beta (r - z0)) or lambda_U sigma(beta (z0 - r)), r = ln pi/ref.
    reward = p - r
    value = np.where(
        good,
        desirable_weight * sigma(beta * (reward - z)),
        undesirable_weight * sigma(beta * (z - reward)),
    )
    return np.where(good, desirable_weight, undesirable_weight) - value


def apo_zero_unpaired(p, r, good, z, **options):
    # The two terms of APO-zero, each on its own response: 1 - sigma(r_w) and sigma(r_l).
    return kto(p, r, good, 0.0, **options)


ORACLES = {"kto": kto, "apo_zero_unpaired": apo_zero_unpaired}


def random_rows(rng, count=BATCH):
    """(policy, reference, desirable, z): sums of 1 to 60 tokens, log-ratios and z of a few nats."""
    tokens = rng.integers(1, 61, count)
    reference = (-rng.uniform(0.05, 3.0, count) * tokens).astype(np.float32)
    policy = np.minimum(reference + rng.normal(0, 5, count), -0.02 * tokens).astype(np.float32)
    return policy, reference, rng.random(count) < 0.5, np.float32(max(0.0, rng.normal(1, 3)))


def random_options(rng):
    names = ("desirable_weight", "undesirable_weight")
    return {"beta": float(rng.uniform(0.02, 1.0))} | {name: float(rng.uniform(0.2, 3)) for name in names}


def call(name, rows, **options):
    policy, reference, good, z = rows
    arrays = (mx.array(np.asarray(a, dtype=np.float32)) for a in (policy, reference))
    return unpaired_loss(name, *arrays, mx.array(good), baseline=mx.array(z, dtype=mx.float32), **options)


def gradient(name, rows, **options):
    """d(sum of losses) / d(policy)."""
    policy, reference, good, z = (mx.array(np.asarray(a)) for a in rows)

    def total(policy):
        reference32, z32 = reference.astype(mx.float32), z.astype(mx.float32)
        return unpaired_loss(name, policy, reference32, good, baseline=z32, **options).sum()

    return np.array(mx.grad(total)(policy.astype(mx.float32)))


def finite_differences(oracle, rows, options, step=1e-5):
    """d(loss) / d(policy) of each row, by central differences in float64."""
    p, r, good, z = (np.asarray(a, dtype=bool if a is rows[2] else np.float64) for a in rows)
    return (oracle(p + step, r, good, z, **options) - oracle(p - step, r, good, z, **options)) / (2 * step)


@pytest.mark.parametrize("name", UNPAIRED)
def test_value_and_gradient_match_the_oracle(name):
    rng = np.random.default_rng(UNPAIRED.index(name))
    assert ORACLES.keys() == set(UNPAIRED)
    for _ in range(BATCHES):
        rows, options = random_rows(rng), random_options(rng)
        p, r, good, z = (np.asarray(a, dtype=bool if a is rows[2] else np.float64) for a in rows)
        expected = ORACLES[name](p, r, good, z, **options)
        np.testing.assert_allclose(np.array(call(name, rows, **options)), expected, rtol=1e-5, atol=ATOL)
        slopes = finite_differences(ORACLES[name], rows, options)
        np.testing.assert_allclose(gradient(name, rows, **options), slopes, rtol=1e-5, atol=ATOL)


@pytest.mark.parametrize("name", UNPAIRED)
def test_half_the_weight_where_policy_equals_reference(name):
    logps = np.linspace(-30, -12, 4)
    rows = (logps, logps, np.array([True, False, True, False]), 0.0)
    value = np.array(call(name, rows, beta=BETA, desirable_weight=1.5, undesirable_weight=0.8))
    np.testing.assert_allclose(value, [0.75, 0.4, 0.75, 0.4], rtol=1e-6)
    # By hand: s'(0) = 1/4, so that a descent step raises desirable responses and lowers the others.
    slopes = gradient(name, rows, beta=BETA, desirable_weight=1.5, undesirable_weight=0.8)
    np.testing.assert_allclose(slopes, BETA / 4 * np.array([-1.5, 0.8, -1.5, 0.8]), rtol=1e-5)


def test_at_the_baseline_kto_is_half_its_weight_and_far_from_it_it_is_flat():
    rows = (
        np.array([-7.0, -7.0, 93.0, -107.0]),
        np.full(4, -10.0),
        np.array([True, False, True, False]),
        3.0,
    )
    np.testing.assert_allclose(np.array(call("kto", rows, beta=1.0))[:2], 0.5, rtol=1e-6)
    assert np.all(np.abs(gradient("kto", rows, beta=1.0)[2:]) < 1e-30)


def test_the_baseline_moves_kto_and_not_its_gradient_into_z():
    rng = np.random.default_rng(3)
    policy, reference, good, z = random_rows(rng)
    low, high = (np.array(call("kto", (policy, reference, good, each))) for each in (z, z + 4))
    assert np.all(low[good] < high[good])
    assert np.all(low[~good] > high[~good])
    same = (np.array(call("apo_zero_unpaired", (policy, reference, good, each))) for each in (z, z + 4))
    np.testing.assert_array_equal(*same)

    def total(p):
        ratios = p - mx.array(reference)
        return unpaired_loss(
            "kto", p, mx.array(reference), mx.array(good), baseline=kl_baseline(ratios + 50.0)
        ).sum()

    z = np.maximum(np.mean(policy.astype(np.float64) - reference + 50.0), 0.0)
    fixed = gradient("kto", (policy, reference, good, z))
    np.testing.assert_allclose(np.array(mx.grad(total)(mx.array(policy))), fixed, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("z", [0.0, 1e4 / BETA])
@pytest.mark.parametrize("name", UNPAIRED)
def test_finite_at_extreme_ratios(name, z, sign):
    reference = np.full(2, -3e5)
    rows = (reference + sign * 1e4 / BETA, reference, np.array([True, False]), z)
    value = np.array(call(name, rows, beta=BETA))
    assert np.all(np.isfinite(value))
    assert np.all((value >= 0) & (value <= 1))
    assert np.all(np.isfinite(gradient(name, rows, beta=BETA)))


def test_the_baseline_is_the_mean_held_at_zero_without_gradient():
    assert kl_baseline(mx.array([3.0, -1.0, 1.0])).item() == pytest.approx(1.0)
    assert kl_baseline(mx.array([-3.0, 1.0])).item() == 0.0
    assert kl_baseline(mx.array([1.0, 2.0]).astype(mx.bfloat16)).dtype == mx.float32
    np.testing.assert_array_equal(np.array(mx.grad(kl_baseline)(mx.array([3.0, 1.0]))), 0.0)
    for wrong in (mx.zeros((0,)), mx.zeros((2, 2))):
        with pytest.raises(ValueError, match=r"expected log-ratios of shape \[M\]"):
            kl_baseline(wrong)


@pytest.mark.parametrize("name", UNPAIRED)
def test_compiled_equals_eager_and_16_bit_inputs_are_cast(name):
    policy, reference, good, z = (mx.array(a) for a in random_rows(np.random.default_rng(1)))

    def total(p):
        return unpaired_loss(name, p, reference, good, baseline=z, desirable_weight=0.7).mean()

    value, slopes = mx.value_and_grad(total)(policy)
    value_c, slopes_c = mx.compile(mx.value_and_grad(total))(policy)
    assert value_c.item() == pytest.approx(value.item(), rel=1e-6)
    np.testing.assert_allclose(np.array(slopes_c), np.array(slopes), rtol=1e-5, atol=1e-8)
    halves = [a.astype(mx.bfloat16) for a in (policy, reference)]
    found = unpaired_loss(name, *halves, good, baseline=z)
    assert found.dtype == mx.float32
    wide = unpaired_loss(name, *(a.astype(mx.float32) for a in halves), good, baseline=z)
    np.testing.assert_array_equal(np.array(found), np.array(wide))


def test_a_list_of_one_weighs_it():
    rows = random_rows(np.random.default_rng(2))
    once, thrice = call("kto", rows), call(["kto"], rows, weights=[3.0])
    np.testing.assert_allclose(np.array(thrice), 3 * np.array(once), rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sigmoid", {}, "loss 'sigmoid' trains on pairs, not on unpaired rows"),
        ("sft", {}, "loss 'sft' trains on demonstrations"),
        ("ktoo", {}, 'no loss is called "ktoo"; did you mean kto'),
        ("kto", {"label_smoothing": 0.1}, "loss 'kto' does not read 'label_smoothing'; it reads beta, des"),
        ("kto", {"desirable_weight": 0.0}, "desirable_weight of loss 'kto': expected above 0, got 0.0"),
        ("kto", {"beta": -1.0}, "beta of loss 'kto': expected above 0"),
        (["kto", "sigmoid"], {}, "loss kto trains on unpaired rows, which no other loss can share"),
    ],
)
def test_what_makes_no_sense_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        call(name, random_rows(np.random.default_rng(0)), **options)


def test_shapes_baselines_and_other_rows_are_refused():
    one, two = mx.zeros((1,)), mx.zeros((2,))
    with pytest.raises(ValueError, match=r"expected arrays of one shape \[B\], got \(2,\), \(1,\)"):
        unpaired_loss("kto", two, one, mx.array([True, False]), baseline=mx.array(0.0))
    with pytest.raises(ValueError, match="loss 'kto' needs baseline"):
        unpaired_loss("kto", two, two, mx.array([True, False]))
    with pytest.raises(ValueError, match="loss 'kto' trains on unpaired, not on pairs"):
        preference_loss("kto", two, two, two, two)
