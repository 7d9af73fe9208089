"""Weighted sums of losses: RPO, MPO and others, against the oracles of their terms."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from loss_oracles import ORACLES, finite_differences, random_options, random_pairs

from localdpo.objective.losses import preference_loss
from localdpo.objective.registry import LOSSES, loss_sum

SUMS = {
    ("sigmoid", "sft"): (1.0, 0.1),  # RPO
    ("sigmoid", "bco_pair", "sft"): (0.8, 0.2, 1.0),  # MPO
    ("exo_pair", "sigmoid", "simpo"): (0.3, 2.0, 1.5),
    ("ipo", "aot"): (0.5, 1.0),
}


def sft(pw, pl, rw, rl, nw, nl):
    # Each chosen response by itself: the mean over its tokens of -ln pi.
    return -(pw / nw)


def oracle_of(names, weights):
    terms = {**ORACLES, "sft": sft}

    def total(*arrays, **options):
        parts = [
            weight * terms[name](*arrays, **{k: v for k, v in options.items() if k in LOSSES[name].options})
            for name, weight in zip(names, weights, strict=True)
        ]
        return sum(parts)

    return total


def call(names, weights, arrays, **options):
    pw, pl, rw, rl, nw, nl = (mx.array(a) for a in arrays)
    return preference_loss(
        names, pw, pl, rw, rl, weights=weights, chosen_tokens=nw, rejected_tokens=nl, **options
    )


@pytest.mark.parametrize("names", SUMS)
def test_value_and_gradient_are_the_weighted_sums_of_the_terms(names):
    weights, rng = SUMS[names], np.random.default_rng(len(names))
    for _ in range(25):
        arrays, options = random_pairs(rng, (8,)), random_options(loss_sum(names).options, rng)
        oracle = oracle_of(names, weights)
        expected = oracle(*[np.asarray(a, dtype=np.float64) for a in arrays], **options)
        np.testing.assert_allclose(
            np.array(call(names, weights, arrays, **options)), expected, rtol=1e-5, atol=2e-6
        )
        pw, pl, *rest = arrays
        gradients = mx.grad(
            lambda a, b, rest=rest, options=options: call(names, weights, (a, b, *rest), **options).sum(),
            (0, 1),
        )(mx.array(pw), mx.array(pl))
        for mine, numeric in zip(gradients, finite_differences(oracle, arrays, options), strict=True):
            np.testing.assert_allclose(np.array(mine), numeric, rtol=1e-5, atol=2e-6)


def test_a_list_of_one_is_that_loss_and_weights_are_one_unless_given():
    arrays = random_pairs(np.random.default_rng(0), (16,))
    alone = np.array(call("sigmoid", None, arrays))
    np.testing.assert_array_equal(np.array(call(["sigmoid"], [1.0], arrays)), alone)
    both = np.array(call(["sigmoid", "hinge"], None, arrays))
    np.testing.assert_allclose(both, alone + np.array(call("hinge", None, arrays)), rtol=1e-6)


def test_reference_free_reaches_only_the_terms_that_read_it():
    arrays = random_pairs(np.random.default_rng(1), (16,))
    both = np.array(call(["sigmoid", "apo_zero"], None, arrays, reference_free=True))
    terms = call("sigmoid", None, arrays, reference_free=True), call("apo_zero", None, arrays)
    np.testing.assert_allclose(both, sum(np.array(term) for term in terms), rtol=1e-6)


def test_a_sum_needs_what_its_terms_need():
    zeros = mx.zeros((2,))
    with pytest.raises(ValueError, match="loss 'sft' needs chosen_tokens"):
        preference_loss(["sigmoid", "sft"], zeros, zeros, zeros, zeros)
    with pytest.raises(ValueError, match="loss 'sigmoid' needs ref_chosen"):
        preference_loss(
            ["orpo", "sigmoid"], zeros, zeros, None, None, chosen_tokens=zeros, rejected_tokens=zeros
        )
    assert not loss_sum(["orpo", "sft"]).needs_reference
    assert not loss_sum(["sigmoid", "aot"]).separable


@pytest.mark.parametrize(
    ("names", "weights", "options", "message"),
    [
        ([], None, {}, "expected one or more losses"),
        (["sigmoid", "sgmoid"], None, {}, 'no loss is called "sgmoid"'),
        (["sft", "sigmoid", "sft"], None, {}, "loss sft named twice"),
        (["sigmoid", "sft"], [1.0], {}, "expected a weight for each of the 2 losses, got 1"),
        (["sigmoid", "sft"], [1.0, 0.0], {}, "expected weights above 0, got 1, 0"),
        (["sigmoid", "sft"], [1.0, float("inf")], {}, "expected weights above 0, got 1, inf"),
        (["sft"], None, {}, "loss 'sft' trains on demonstrations"),
        (["ipo", "sft"], None, {"simpo_gamma": 1.0}, r"loss 'ipo\+sft' does not read 'simpo_gamma'"),
        (["exo_pair", "sft"], None, {}, "label_smoothing of loss 'exo_pair'"),
    ],
)
def test_sums_that_make_no_sense_are_refused(names, weights, options, message):
    with pytest.raises(ValueError, match=message):
        call(names, weights, random_pairs(np.random.default_rng(0), (4,)), **options)
