"""LD-DPO and WPO against token-level NumPy in float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from loss_oracles import ORACLES, finite_differences, random_options, random_pairs

from localdpo.objective.losses import preference_loss
from localdpo.objective.registry import LOSSES

WEIGHED = [name for name, spec in LOSSES.items() if "use_weighting" in spec.options]
WITH_LD = [name for name, spec in LOSSES.items() if "ld_alpha" in spec.options]


def random_tokens(rng, count):
    """Per pair: token log-probabilities of chosen and rejected under policy and reference, float64 lists."""
    pairs = []
    for _ in range(count):
        lengths = rng.integers(1, 20, 2)
        reference = [-rng.uniform(0.05, 3.0, n) for n in lengths]
        pairs.append([*(r + rng.normal(0, 0.3, len(r)) for r in reference), *reference])
    return pairs


def sums(pairs, take):
    """[4, B]: policy chosen, policy rejected, reference chosen, reference rejected."""
    return np.array([[take(tokens, min(len(pair[0]), len(pair[1]))) for tokens in pair] for pair in pairs]).T


def desensitised(alpha):
    # LD-DPO: each token beyond the public length has its probability raised to the power alpha.
    return lambda tokens, public: tokens[:public].sum() + alpha * tokens[public:].sum()


def call(name, total, public, **options):
    arrays = [mx.array(a.astype(np.float32)) for a in total]
    return preference_loss(name, *arrays, public=public, **options)


@pytest.mark.parametrize("name", WITH_LD)
def test_tail_tokens_count_alpha_times(name):
    rng = np.random.default_rng(WITH_LD.index(name))
    for _ in range(20):
        pairs, alpha = random_tokens(rng, 8), float(rng.uniform())
        options = random_options(set(LOSSES[name].options), rng)
        total = sums(pairs, lambda tokens, public: tokens.sum()).astype(np.float32)
        public = sums(pairs, lambda tokens, public: tokens[:public].sum()).astype(np.float32)
        arrays = [*public + alpha * (total.astype(np.float64) - public), np.ones(8), np.ones(8)]
        np.testing.assert_allclose(arrays[:4], sums(pairs, desensitised(alpha)), rtol=1e-6)
        expected = ORACLES[name](*arrays, **options)
        given = [mx.array(a) for a in public]
        got = np.array(call(name, total, given, ld_alpha=alpha, **options))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        # A token of the tail moves the loss alpha times as much as one of the public part.
        chosen, rejected = finite_differences(ORACLES[name], arrays, options)
        rest = [mx.array(a) for a in total[2:]]
        gradients = mx.grad(
            lambda pw, pl, bw, bl, rest=rest, given=given, alpha=alpha, options=options: preference_loss(
                name, pw, pl, *rest, public=(bw, bl, *given[2:]), ld_alpha=alpha, **options
            ).sum(),
            (0, 1, 2, 3),
        )(*(mx.array(a) for a in total[:2]), *given[:2])
        factors = (alpha, alpha, 1 - alpha, 1 - alpha)
        for mine, slope, factor in zip(gradients, [chosen, rejected] * 2, factors, strict=True):
            np.testing.assert_allclose(np.array(mine), factor * slope, rtol=1e-4, atol=1e-5)


def test_alpha_one_is_dpo_and_needs_no_public_sums():
    total = sums(random_tokens(np.random.default_rng(0), 8), lambda tokens, public: tokens.sum())
    plain = np.array(call("sigmoid", total, None))
    np.testing.assert_array_equal(np.array(call("sigmoid", total, None, ld_alpha=1.0)), plain)
    with pytest.raises(
        ValueError, match="loss 'sigmoid' needs public policy_chosen and public policy_rejected"
    ):
        call("sigmoid", total, None, ld_alpha=0.5)


def test_reference_free_needs_no_public_sums_of_the_reference():
    pairs = random_tokens(np.random.default_rng(0), 8)
    total = sums(pairs, lambda tokens, public: tokens.sum())
    public = [
        mx.array(a.astype(np.float32)) for a in sums(pairs, lambda tokens, public: tokens[:public].sum())
    ]
    options = {"ld_alpha": 0.25, "reference_free": True}
    got = np.array(call("sigmoid", total, (*public[:2], None, None), **options))
    w, lo, _, _ = sums(pairs, desensitised(0.25))
    np.testing.assert_allclose(got, np.log1p(np.exp(-0.1 * (w - lo))), rtol=1e-5)


def test_in_a_sum_only_the_terms_that_read_it_are_desensitised():
    pairs = random_tokens(np.random.default_rng(0), 8)
    total = sums(pairs, lambda tokens, public: tokens.sum())
    public = [
        mx.array(a.astype(np.float32)) for a in sums(pairs, lambda tokens, public: tokens[:public].sum())
    ]
    tokens = {f"{side}_tokens": mx.full((8,), 7.0) for side in ("chosen", "rejected")}
    both = call(["sigmoid", "sft"], total, public, ld_alpha=0.5, **tokens)
    alone = call("sigmoid", total, public, ld_alpha=0.5)
    np.testing.assert_allclose(np.array(both), np.array(alone) - total[0] / 7, rtol=1e-5)


@pytest.mark.parametrize("name", WEIGHED)
def test_weights_are_those_of_wpo_and_carry_no_gradient(name):
    rng = np.random.default_rng(3)
    arrays = [mx.array(a) for a in random_pairs(rng, (32,))]
    pw, pl, rw, rl, nw, nl = arrays
    chosen, rejected = rng.normal(-0.3, 1, (2, 32)).astype(np.float32)
    # WPO eq. 2, sampled alignment: the geometric mean over tokens of p / sum p^2, of both responses.
    weights = np.minimum(np.exp(chosen.astype(np.float64)) * np.exp(rejected.astype(np.float64)), 1.0)
    assert 0 < (weights == 1.0).sum() < 32
    options = {"label_smoothing": 0.1} if LOSSES[name].requires else {}

    def weighed(pw, pl, chosen, rejected, use_weighting=True):
        return preference_loss(
            name,
            *(pw, pl, rw, rl),
            chosen_tokens=nw,
            rejected_tokens=nl,
            alignment=(chosen, rejected),
            use_weighting=use_weighting,
            **options,
        )

    given = (pw, pl, mx.array(chosen), mx.array(rejected))
    np.testing.assert_allclose(
        np.array(weighed(*given)), weights * np.array(weighed(*given, False)), rtol=1e-5
    )
    found = mx.grad(lambda *a: weighed(*a).sum(), (0, 1, 2, 3))(*given)
    plain = mx.grad(lambda *a: weighed(*a, False).sum(), (0, 1))(*given)
    for mine, slope in zip(found[:2], plain, strict=True):
        np.testing.assert_allclose(np.array(mine), weights * np.array(slope), rtol=1e-5, atol=1e-7)
    assert not any(np.any(np.array(gradient)) for gradient in found[2:])


def test_weighting_is_refused_where_pairs_have_no_loss_of_their_own_and_needs_the_alignment():
    zeros = mx.zeros((2,))
    for name in ("aot", "aot_unpaired"):
        with pytest.raises(ValueError, match=f"loss '{name}' does not read 'use_weighting'"):
            preference_loss(name, zeros, zeros, zeros, zeros, use_weighting=True)
    with pytest.raises(ValueError, match="loss 'sigmoid' needs alignment of chosen and rejected"):
        preference_loss("sigmoid", zeros, zeros, zeros, zeros, use_weighting=True)
