"""Every preference loss against a float64 oracle, at its known values, and at its extremes."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_oracles import ORACLES, finite_differences, random_options, random_pairs, score

import localdpo
from localdpo.objective.losses import preference_loss
from localdpo.objective.losses.responses import sft_loss
from localdpo.objective.registry import LOSSES

PAIR_LOSSES = sorted(name for name, spec in LOSSES.items() if spec.data == "pairs")
SEPARABLE = [name for name in PAIR_LOSSES if LOSSES[name].separable]
BATCHES, BATCH = 50, 20  # 1,000 cases, each batch with options of its own
# Beside rtol 1e-5, for values and slopes that cross zero (ipo at its target, exo_pair at its minimum,
# discopop at its turning points, where slopes of order 10 cancel). aot takes differences of whole
# log-probabilities, 100 nats and more, which float32 holds to 8e-6.
ATOL = {name: 1e-6 if name in ("aot", "discopop") else 2e-7 for name in PAIR_LOSSES}
BETA = 0.1
LN2 = math.log(2.0)


def call(name, arrays, **options):
    pw, pl, rw, rl, nw, nl = (mx.array(np.asarray(a, dtype=np.float32)) for a in arrays)
    return preference_loss(name, pw, pl, rw, rl, chosen_tokens=nw, rejected_tokens=nl, **options)


def gradients(name, arrays, **options):
    """d(sum of losses) / d(policy_chosen), d(policy_rejected)."""
    pw, pl, rw, rl, nw, nl = (mx.array(np.asarray(a, dtype=np.float32)) for a in arrays)

    def total(pw, pl):
        return preference_loss(name, pw, pl, rw, rl, chosen_tokens=nw, rejected_tokens=nl, **options).sum()

    return [np.array(g) for g in mx.grad(total, argnums=(0, 1))(pw, pl)]


def required(name):
    return {"label_smoothing": 0.1} if LOSSES[name].requires else {}


def at_reference(count=4, tokens=20.0):
    logps = np.linspace(-30.0, -12.0, count, dtype=np.float32)
    rejected = logps - 5.0
    return logps, rejected, logps, rejected, np.full(count, tokens), np.full(count, tokens)


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_value_and_gradient_match_the_oracle(name):
    rng = np.random.default_rng(PAIR_LOSSES.index(name))
    worst_value = worst_gradient = 0.0
    for _ in range(BATCHES):
        arrays, options = random_pairs(rng, (BATCH,)), random_options(LOSSES[name].options, rng)
        wide = [np.asarray(a, dtype=np.float64) for a in arrays]
        expected = ORACLES[name](*wide, **options)
        got = np.array(call(name, arrays, **options))
        worst_value = max(
            worst_value, np.max(np.abs(got - expected) / (ATOL[name] + 1e-5 * np.abs(expected)))
        )
        for mine, numeric in zip(
            gradients(name, arrays, **options),
            finite_differences(ORACLES[name], arrays, options),
            strict=True,
        ):
            error = np.abs(mine - numeric) / (ATOL[name] + 1e-5 * np.abs(numeric))
            worst_gradient = max(worst_gradient, np.max(error))
    assert worst_value <= 1.0
    assert worst_gradient <= 1.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sigmoid", LN2),
        ("ipo", 1 / (4 * BETA**2)),
        ("ipo_sum", 1 / (4 * BETA**2)),
        ("hinge", 1.0),
        ("robust", LN2),
        ("nca_pair", 2 * LN2),
        ("bco_pair", 2 * LN2),
        ("sppo_hard", 1 / (2 * BETA**2)),
        ("aot", LN2),
        ("aot_unpaired", LN2),
        ("apo_zero", 1.0),
        ("apo_down", 1.0),
        ("discopop", (LN2 + 1) / 2),
        ("sigmoid_norm", LN2),
        ("dpop", LN2),
        ("r_dpo", LN2),
    ],
)
def test_value_where_policy_equals_reference(name, expected):
    np.testing.assert_allclose(np.array(call(name, at_reference(), beta=BETA)), expected, rtol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_smoothed_losses_also_start_at_ln_2(smoothing):
    for name in ("sigmoid", "robust", "aot", "aot_unpaired"):
        value = np.array(call(name, at_reference(), beta=BETA, label_smoothing=smoothing))
        np.testing.assert_allclose(value, LN2, rtol=1e-6)


def test_sigmoid_gradient_at_the_start_is_half_beta():
    chosen, rejected = gradients("sigmoid", at_reference(), beta=BETA)
    np.testing.assert_allclose(chosen, -BETA / 2, rtol=1e-6)
    np.testing.assert_allclose(rejected, BETA / 2, rtol=1e-6)


@pytest.mark.parametrize("name", [n for n in PAIR_LOSSES if n != "discopop"])
def test_gradient_signs_at_the_start(name):
    # A descent step raises the chosen response (apo_down leaves it where it is) and lowers the rejected one.
    chosen, rejected = gradients(name, at_reference(), beta=BETA, **required(name))
    assert np.all(np.abs(chosen) < 1e-8) if name == "apo_down" else np.all(chosen < 0)
    assert np.all(rejected > 0)


@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_discopop_starts_on_its_non_convex_stretch(tau):
    # By hand: d loss / d(beta h) at 0 is (1 - ln 2)/(4 tau) - 3/4, which is positive for tau below 0.102.
    slope = (1 - LN2) / (4 * tau) - 0.75
    chosen, rejected = gradients("discopop", at_reference(), beta=BETA, discopop_tau=tau)
    np.testing.assert_allclose(chosen, BETA * slope, rtol=1e-5)
    np.testing.assert_allclose(rejected, -BETA * slope, rtol=1e-5)


F_DIVERGENCES = [
    {"f_divergence": "forward_kl"},
    {"f_divergence": "js"},
    {"f_divergence": "alpha", "f_alpha": 0.3},
]
WITH_F_DIVERGENCE = [name for name in PAIR_LOSSES if "f_divergence" in LOSSES[name].options]


@pytest.mark.parametrize("divergence", F_DIVERGENCES, ids=str)
@pytest.mark.parametrize("name", WITH_F_DIVERGENCE)
@pytest.mark.every(4)
def test_f_divergences_match_the_oracle(name, divergence):
    rng = np.random.default_rng(7)
    for _ in range(45):  # with three divergences more than 1,000 cases a loss
        arrays = random_pairs(rng, (BATCH,))
        options = random_options(set(LOSSES[name].options) - {"reference_free"}, rng) | divergence
        wide = [np.asarray(a, dtype=np.float64) for a in arrays]
        # Scores reach e^10; their difference carries float32's rounding of the larger one into the sigmoid.
        scores = [np.abs(score(p, r, **divergence)) for p, r in zip(wide[:2], wide[2:4], strict=True)]
        rounding = 2e-7 * options["beta"] * np.maximum(*scores)
        expected = ORACLES[name](*wide, **options)
        error = np.abs(np.array(call(name, arrays, **options)) - expected)
        assert np.all(error <= 2e-7 + 1e-5 * np.abs(expected) + rounding)
        numeric = finite_differences(ORACLES[name], arrays, options)
        for mine, slope in zip(gradients(name, arrays, **options), numeric, strict=True):
            # ... and into slopes, which may cancel; that of a score itself is at most 1 + |score|.
            steepest = np.abs(slope) + options["beta"] * (1 + np.maximum(*scores))
            assert np.all(np.abs(mine - slope) <= 2e-7 + 1e-5 * np.abs(slope) + rounding * steepest)


@pytest.mark.parametrize("divergence", F_DIVERGENCES, ids=str)
@pytest.mark.parametrize("name", WITH_F_DIVERGENCE)
def test_f_divergences_start_as_reverse_kl_does(name, divergence):
    options = {"beta": BETA, **required(name)}
    plain, other = (call(name, at_reference(), **options, **f) for f in ({}, divergence))
    np.testing.assert_allclose(np.array(other), np.array(plain), rtol=1e-6)
    slope = {"js": 0.5}.get(divergence["f_divergence"], 1.0)  # f'' at u = 1, in ln u
    for one, two in zip(
        gradients(name, at_reference(), **options, **divergence),
        gradients(name, at_reference(), **options),
        strict=True,
    ):
        np.testing.assert_allclose(one, slope * two, rtol=1e-5)


@pytest.mark.parametrize("divergence", F_DIVERGENCES, ids=str)
@pytest.mark.parametrize("name", WITH_F_DIVERGENCE)
def test_f_divergences_are_finite_at_extreme_ratios_and_never_lose_the_chosen_response(name, divergence):
    far, tokens = np.array([-1e5, -1e3, -40.0, 1e3, 1e5], dtype=np.float32), np.ones(5, dtype=np.float32)
    reference = np.full(5, -2e5, dtype=np.float32)
    options = {"beta": BETA, **required(name), **divergence}
    for arrays in (
        (reference + far, reference, reference, reference, tokens, tokens),
        (reference, reference + far, reference, reference, tokens, tokens),
    ):
        assert np.all(np.isfinite(np.array(call(name, arrays, **options))))
        assert all(np.all(np.isfinite(g)) for g in gradients(name, arrays, **options))
    chosen, _ = gradients("sigmoid", (reference + far, *[reference] * 3, tokens, tokens), **divergence)
    assert np.all(chosen[:3] < 0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("split", [(1.0, 0.0), (0.0, -1.0), (0.5, -0.5), (2.0, 1.0)])
@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_finite_at_extreme_margins(name, split, sign):
    far = sign * 1e4 / BETA
    reference = np.full(2, -3e5, dtype=np.float32)
    chosen, rejected = reference + split[0] * far, reference + split[1] * far
    tokens = np.ones(2, dtype=np.float32)
    arrays = (chosen, rejected, reference, reference, tokens, tokens)
    options = {"beta": BETA, **required(name)}
    assert np.all(np.isfinite(np.array(call(name, arrays, **options))))
    for gradient in gradients(name, arrays, **options):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("logp", [0.0, 1e-5, -1e-9, -1e-3, -50.0, -1e4])
def test_orpo_is_finite_for_any_probability(logp):
    # A sum of float32 log-probabilities of certain tokens is 0, or a rounding error above it.
    one, other = np.full(2, logp, dtype=np.float32), np.full(2, -3.0, dtype=np.float32)
    tokens = np.ones(2, dtype=np.float32)
    for arrays in ((one, other, one, other, tokens, tokens), (other, one, other, one, tokens, tokens)):
        assert np.all(np.isfinite(np.array(call("orpo", arrays))))
        assert all(np.all(np.isfinite(g)) for g in gradients("orpo", arrays))


def test_exo_needs_smoothing_and_is_zero_where_the_policy_has_the_smoothed_preference():
    e = 0.1
    h = math.log((1 - e) / e) / BETA
    arrays = (np.array([-10.0 + h]), np.array([-10.0]), np.array([-10.0]), np.array([-10.0]), [5], [5])
    assert abs(call("exo_pair", arrays, beta=BETA, label_smoothing=e).item()) < 1e-6
    assert np.all(np.abs(gradients("sigmoid", arrays, beta=BETA, label_smoothing=e)[0]) < 1e-7)
    with pytest.raises(ValueError, match="label_smoothing of loss 'exo_pair'"):
        call("exo_pair", arrays, beta=BETA)


def test_robust_is_unbiased_under_swapped_labels():
    rng = np.random.default_rng(5)
    pw, pl, rw, rl, nw, nl = random_pairs(rng, (64,))
    e = 0.2
    as_labelled = np.array(call("robust", (pw, pl, rw, rl, nw, nl), label_smoothing=e), dtype=np.float64)
    swapped = np.array(call("robust", (pl, pw, rl, rw, nl, nw), label_smoothing=e), dtype=np.float64)
    clean = np.array(call("sigmoid", (pw, pl, rw, rl, nw, nl)))
    np.testing.assert_allclose((1 - e) * as_labelled + e * swapped, clean, rtol=1e-5, atol=1e-6)


def test_r_dpo_is_stationary_at_the_optimum_of_the_length_penalised_objective():
    # max E[r] - alpha E|y| - beta KL has pi ~ ref exp((r - alpha |y|)/beta). With preferences drawn from
    # sigma(r_w - r_l), the expected loss must have no gradient there; with the other sign of alpha it has
    # one.
    alpha, r_a, r_b, n_a, n_b = 0.05, 1.3, 0.4, 30.0, 10.0
    a, b = (r_a - alpha * n_a) / BETA, (r_b - alpha * n_b) / BETA
    a_wins = 1 / (1 + math.exp(-(r_a - r_b)))
    options = {"beta": BETA, "r_dpo_alpha": alpha}
    first = gradients("r_dpo", ([a], [b], [0.0], [0.0], [n_a], [n_b]), **options)
    second = gradients("r_dpo", ([b], [a], [0.0], [0.0], [n_b], [n_a]), **options)
    assert abs(a_wins * first[0][0] + (1 - a_wins) * second[1][0]) < 1e-6


def test_dpop_equals_dpo_until_the_chosen_response_falls():
    above = ([-9.0, -9.5], [-12.0, -8.0], [-10.0, -10.0], [-10.0, -10.0], [5, 5], [5, 5])
    below = ([-11.0], [-12.0], [-10.0], [-10.0], [5], [5])
    np.testing.assert_array_equal(np.array(call("dpop", above)), np.array(call("sigmoid", above)))
    assert call("dpop", below).item() > call("sigmoid", below).item()


def test_per_token_losses_divide_by_scored_tokens():
    # The same log-ratio per token gives the same loss, whatever the lengths.
    short = ([-10.0], [-14.0], [-12.0], [-12.0], [2], [2])
    long = ([-100.0], [-140.0], [-120.0], [-120.0], [20], [20])
    for name in ("ipo", "sigmoid_norm", "simpo", "orpo"):
        assert call(name, short).item() == pytest.approx(call(name, long).item(), rel=1e-6)


def test_reference_free_ignores_the_reference_in_the_loss():
    rng = np.random.default_rng(3)
    pw, pl, rw, rl, nw, nl = random_pairs(rng, (16,))
    for name, spec in LOSSES.items():
        if "reference_free" in spec.options:
            got = call(name, (pw, pl, rw, rl, nw, nl), reference_free=True)
            zero = call(name, (pw, pl, 0 * rw, 0 * rl, nw, nl))
            np.testing.assert_array_equal(np.array(got), np.array(zero))


def test_losses_without_a_reference_accept_none():
    pw, pl = mx.array([-10.0]), mx.array([-12.0])
    tokens = mx.array([5])
    for name in ("simpo", "orpo"):
        preference_loss(name, pw, pl, None, None, chosen_tokens=tokens, rejected_tokens=tokens)
    with pytest.raises(ValueError, match="needs ref_chosen and ref_rejected"):
        preference_loss("sigmoid", pw, pl, None, None)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16])
def test_reductions_are_float32_whatever_the_inputs(dtype):
    arrays = [mx.array(a).astype(dtype) for a in random_pairs(np.random.default_rng(1), (16,))]
    for name in PAIR_LOSSES:
        both = []
        for inputs in (arrays, [a.astype(mx.float32) for a in arrays]):
            pw, pl, rw, rl, nw, nl = inputs
            loss = preference_loss(
                name, pw, pl, rw, rl, chosen_tokens=nw, rejected_tokens=nl, **required(name)
            )
            assert loss.dtype == mx.float32
            both.append(np.array(loss))
        np.testing.assert_array_equal(*both)


# Three kinds of graph: elementwise, a sort, and branches. Each trace costs seconds on the CPU backend.
@pytest.mark.parametrize("name", ["sigmoid", "aot", "orpo"])
def test_compiled_equals_eager(name):
    pw, pl, rw, rl, nw, nl = (mx.array(a) for a in random_pairs(np.random.default_rng(2), (16,)))

    def total(pw, pl):
        losses = preference_loss(
            name, pw, pl, rw, rl, beta=0.3, chosen_tokens=nw, rejected_tokens=nl, **required(name)
        )
        return losses.mean()

    eager, compiled = mx.value_and_grad(total, (0, 1)), mx.compile(mx.value_and_grad(total, (0, 1)))
    (value, grads), (value_c, grads_c) = eager(pw, pl), compiled(pw, pl)
    assert value_c.item() == pytest.approx(value.item(), rel=1e-6)
    for a, b in zip(grads, grads_c, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-5, atol=1e-7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), cut=st.integers(1, 11), name=st.sampled_from(SEPARABLE))
def test_separable_losses_do_not_depend_on_the_batch(seed, cut, name):
    arrays = random_pairs(np.random.default_rng(seed), (12,))
    whole = np.array(call(name, arrays, **required(name)))
    parts = [
        np.array(call(name, [a[part] for a in arrays], **required(name)))
        for part in (slice(cut), slice(cut, 12))
    ]
    np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_aot_compares_sorted_gaps():
    # Gaps of the policy 3 and 1, of the reference 0 and 2: sorted differences 1 and 1, per-pair ones 3 and
    # -1.
    paired = ([-1.0, -1.0], [-4.0, -2.0], [-1.0, -1.0], [-1.0, -3.0], [5, 5], [5, 5])
    np.testing.assert_allclose(np.array(call("aot", paired, beta=1.0)), np.log1p(np.exp(-1.0)), rtol=1e-6)
    # Log-ratios of chosen 3 and 0, of rejected 1 and 2: sorted differences -1 and 1, per-pair ones 2 and -2.
    unpaired = ([-1.0, -4.0], [-3.0, -2.0], [-4.0, -4.0], [-4.0, -4.0], [5, 5], [5, 5])
    expected = np.log1p(np.exp([1.0, -1.0]))
    np.testing.assert_allclose(np.array(call("aot_unpaired", unpaired, beta=1.0)), expected, rtol=1e-6)
    for name, arrays in (("aot", paired), ("aot_unpaired", unpaired)):
        alone = [call(name, [a[i : i + 1] for a in arrays], beta=1.0).item() for i in (0, 1)]
        assert not LOSSES[name].separable
        assert np.mean(alone) != pytest.approx(np.array(call(name, arrays, beta=1.0)).mean(), rel=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy_rejected": mx.zeros((3,))}, r"expected policy_rejected of shape \(2,\), got \(3,\)"),
        ({"ref_chosen": mx.zeros((2, 1))}, r"expected ref_chosen of shape \(2,\), got \(2, 1\)"),
        ({"chosen_tokens": mx.ones((1,))}, r"expected chosen_tokens of shape \(2,\), got \(1,\)"),
        ({"policy_chosen": mx.zeros((2, 2))}, r"expected policy_chosen of shape \[B\], got \(2, 2\)"),
        ({"policy_chosen": np.zeros(2)}, r"policy_chosen: expected an mlx.core.array \[B\], got ndarray"),
        ({"policy_rejected": None}, "policy_rejected: expected an mlx.core.array .*, got NoneType"),
        ({"ref_chosen": [0.0, 0.0]}, "ref_chosen: expected an mlx.core.array .*, got list"),
        ({"public": [mx.zeros((2,))]}, "public: expected 4 arrays, got 1"),
        ({"alignment": []}, "alignment: expected 2 arrays, got 0"),
    ],
)
def test_wrong_shapes_are_refused(change, message):
    names = ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected")
    arguments = {
        **{n: mx.zeros((2,)) for n in names},
        "chosen_tokens": mx.ones((2,)),
        "rejected_tokens": mx.ones((2,)),
    }
    with pytest.raises(ValueError, match=message):
        preference_loss("sigmoid", **{**arguments, **change})


def test_missing_token_counts_are_refused():
    zeros = mx.zeros((2,))
    for name, spec in LOSSES.items():
        if spec.data == "pairs" and spec.needs_tokens:
            with pytest.raises(ValueError, match="needs chosen_tokens and rejected_tokens"):
                preference_loss(name, zeros, zeros, zeros, zeros)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sigmod", {}, 'no loss is called "sigmod"; did you mean sigmoid'),
        ("sft", {}, "'sft' trains on demonstrations"),
        (
            "ipo",
            {"label_smoothing": 0.1},
            "'ipo' does not read 'label_smoothing'; it reads beta, reference_free",
        ),
        ("nca_pair", {"reference_free": True}, "'nca_pair' does not read 'reference_free'"),
        ("sigmoid", {"simpo_gamma": 1.0}, "'sigmoid' does not read 'simpo_gamma'"),
        ("sigmoid", {"beat": 1.0}, "'sigmoid' does not read 'beat'"),
        ("sigmoid", {"beta": 0.0}, "beta of loss 'sigmoid': expected above 0, got 0.0"),
        ("sigmoid", {"beta": float("nan")}, "expected above 0, got nan"),
        ("sigmoid", {"label_smoothing": 0.5}, "expected 0 or more and below 0.5, got 0.5"),
        ("sigmoid", {"reference_free": 1}, "expected true or false, got 1"),
        ("apo_zero", {"f_divergence": "js"}, "'apo_zero' does not read 'f_divergence'"),
        ("sigmoid", {"f_divergence": "kl"}, "expected one of reverse_kl, forward_kl, js, alpha, got 'kl'"),
        (
            "sigmoid",
            {"f_alpha": 0.3},
            "f_alpha of loss 'sigmoid': it is read only where f_divergence is alpha",
        ),
        ("hinge", {"f_divergence": "alpha", "f_alpha": 1.0}, "expected above 0 and below 1, got 1.0"),
        (
            "sigmoid",
            {"f_divergence": "js", "reference_free": True},
            "f_divergence of loss 'sigmoid': js makes no sense with reference_free",
        ),
        ("discopop", {"discopop_tau": 2.0}, "expected above 0 and 1 or less, got 2.0"),
    ],
)
def test_options_that_make_no_sense_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        call(name, at_reference(), **options)


def test_preference_loss_is_public():
    assert localdpo.preference_loss is preference_loss


def test_sft_loss_is_token_weighted_and_its_gradient_is_one_over_tokens():
    logps, tokens = mx.array([-10.0, -3.0, -0.5]), mx.array([20, 4, 1])
    numerator, denominator = sft_loss(logps, tokens)
    assert numerator.item() / denominator.item() == pytest.approx(13.5 / 25)
    gradient = mx.grad(lambda x: sft_loss(x, tokens)[0] / sft_loss(x, tokens)[1])(logps)
    np.testing.assert_allclose(np.array(gradient), -1 / 25, rtol=1e-6)
    with pytest.raises(ValueError, match="expected two arrays"):
        sft_loss(logps, mx.array([20, 4]))
