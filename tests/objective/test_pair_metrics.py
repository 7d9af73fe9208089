"""Metrics of pairs: exact values, and sums that do not depend on how the rows are split."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from loss_oracles import random_pairs

from localdpo.objective.losses import preference_loss
from localdpo.objective.losses.responses import sft_loss
from localdpo.objective.metrics import Sums, demonstration_metrics, pair_metrics
from localdpo.objective.scores import PairScores, ResponseScores

BETA = 0.1


def scores_of(pw, pl, rw, rl, nw, nl):
    return PairScores(ResponseScores(pw, rw, nw), ResponseScores(pl, rl, nl))


def metrics_of(arrays, reference=True, weights=None):
    pw, pl, rw, rl, nw, nl = (mx.array(np.asarray(a, dtype=np.float32)) for a in arrays)
    losses = preference_loss("sigmoid", pw, pl, rw, rl, beta=BETA)
    return pair_metrics(
        scores_of(pw, pl, rw if reference else None, rl if reference else None, nw, nl), losses, BETA, weights
    )


FOUR_PAIRS = (
    [-10.0, -20.0, -30.0, -9.0],  # log-ratios of chosen: +2, -1, 0, -3
    [-14.0, -21.0, -25.0, -9.0],  # log-ratios of rejected: -2, -1, 1, 0
    [-12.0, -19.0, -30.0, -6.0],
    [-12.0, -20.0, -26.0, -9.0],
    [4, 10, 6, 20],
    [8, 2, 5, 5],
)


def test_values_by_hand():
    means = Sums().add(metrics_of(FOUR_PAIRS)).means()
    assert means.pop("loss") == pytest.approx(
        np.mean(np.log1p(np.exp(-BETA * np.array([4.0, 0.0, -1.0, -3.0])))), rel=1e-6
    )
    assert means == pytest.approx(
        {
            "rewards/chosen": BETA * -0.5,
            "rewards/rejected": BETA * -0.5,
            "rewards/accuracies": 0.25,  # strictly above: the tie does not count
            "rewards/ties": 0.25,
            "rewards/margins": 0.0,
            "logps/chosen": -17.25,
            "logps/rejected": -17.25,
            "displacement": 0.5,  # strictly below the reference
            "logratio_per_token/chosen": -2.0 / 40,  # weighted by tokens, not a mean of means
            "logratio_per_token/rejected": -2.0 / 20,
        },
        abs=1e-6,
    )


@pytest.mark.parametrize("reference", [True, False])
def test_a_row_that_fills_a_place_counts_nothing(reference):
    expected = metrics_of(FOUR_PAIRS, reference)
    filled = metrics_of([(*a, a[0], a[0]) for a in FOUR_PAIRS], reference, mx.array([1.0] * 4 + [0.0] * 2))
    for name, pair in expected.items():
        np.testing.assert_allclose(np.array(filled[name]), np.array(pair), rtol=1e-6, err_msg=name)
    policy, tokens = mx.array([-3.0, -5.0, -3.0]), mx.array([2, 4, 2])
    two = demonstration_metrics(ResponseScores(policy, tokens=tokens), mx.array([1.0, 1.0, 0.0]))
    assert {name: pair.tolist() for name, pair in two.items()} == {
        "loss": [8.0, 6.0],
        "logps/chosen": [-8.0, 2.0],
    }


def test_where_policy_equals_reference_all_pairs_tie():
    pw, pl, _, _, nw, nl = random_pairs(np.random.default_rng(0), (9,))
    means = Sums().add(metrics_of((pw, pl, pw, pl, nw, nl))).means()
    assert means["rewards/ties"] == 1.0
    assert means["rewards/accuracies"] == means["displacement"] == means["rewards/margins"] == 0.0


@given(seed=st.integers(0, 2**16), cuts=st.lists(st.integers(1, 23), max_size=4, unique=True))
def test_any_split_gives_the_figures_of_the_whole(seed, cuts):
    arrays = random_pairs(np.random.default_rng(seed), (24,))
    whole = Sums().add(metrics_of(arrays)).means()
    edges = [0, *sorted(cuts), 24]
    split = Sums()
    for start, stop in pairwise(edges):
        split.add(metrics_of([a[start:stop] for a in arrays]))
    # rel: the order of float32 additions; abs: means that cancel to about 0.
    assert split.means() == pytest.approx(whole, rel=1e-5, abs=1e-5)


def test_sums_add_up_and_leave_out_what_was_not_measured():
    sums = Sums().add({"kl": (2.0, 4.0), "nothing": (0.0, 0.0)})
    assert sums.add({"kl": (1.0, 2.0), "loss": (3.0, 1.0)}).means() == {"kl": 0.5, "loss": 3.0}


@pytest.mark.parametrize("denominator", [8, mx.array(8.0)])
@pytest.mark.parametrize("reduce", [lambda losses, sums: losses.sum(), lambda losses, sums: sums["loss"][0]])
def test_works_inside_a_compiled_and_differentiated_step(reduce, denominator):
    # The sum of the losses twice over, and the number of pairs as an input or a constant beside those of the
    # metrics: equal values that mx.compile merges.
    arrays = [mx.array(a) for a in random_pairs(np.random.default_rng(4), (8,))]
    pw, pl, rw, rl, nw, nl = arrays

    def objective(pw, pl, denominator):
        losses = preference_loss("sigmoid", pw, pl, rw, rl, beta=BETA)
        sums = pair_metrics(scores_of(pw, pl, rw, rl, nw, nl), losses, BETA)
        return reduce(losses, sums) / denominator, sums

    (value, sums), grads = mx.compile(mx.value_and_grad(objective, argnums=(0, 1)))(pw, pl, denominator)
    means = Sums().add(sums).means()
    assert means == pytest.approx(Sums().add(metrics_of(arrays)).means(), rel=1e-5, abs=1e-6)
    assert means["loss"] == pytest.approx(value.item(), rel=1e-6)
    plain = mx.grad(lambda pw: preference_loss("sigmoid", pw, pl, rw, rl, beta=BETA).mean())(pw)
    np.testing.assert_allclose(np.array(grads[0]), np.array(plain), rtol=1e-5)


def test_demonstrations_work_inside_a_compiled_and_differentiated_step():
    logps, tokens = mx.array([-10.0, -2.0]), mx.array([5, 1])

    def objective(logps, tokens):
        numerator, denominator = sft_loss(logps, tokens)
        return numerator / denominator, demonstration_metrics(ResponseScores(logps, tokens=tokens))

    (value, sums), grad = mx.compile(mx.value_and_grad(objective))(logps, tokens)
    assert value.item() == pytest.approx(2.0)
    assert Sums().add(sums).means() == pytest.approx({"loss": 2.0, "logps/chosen": -6.0})
    np.testing.assert_allclose(np.array(grad), -1 / 6, rtol=1e-6)


def test_without_a_reference_rewards_are_per_token_and_nothing_is_compared():
    means = Sums().add(metrics_of(FOUR_PAIRS, reference=False)).means()
    assert means["rewards/chosen"] == pytest.approx(BETA * np.mean([-10 / 4, -2, -5, -9 / 20]), rel=1e-6)
    assert "displacement" not in means
    assert not any(name.startswith("logratio") for name in means)


def test_shapes_that_differ_are_refused():
    good, bad = mx.zeros((3,)), mx.zeros((2,))
    with pytest.raises(ValueError, match=r"expected ref_rejected of shape \(3,\), got \(2,\)"):
        pair_metrics(scores_of(good, good, good, bad, good, good), good, BETA)
    with pytest.raises(ValueError, match="both ref_chosen and ref_rejected, or neither"):
        pair_metrics(scores_of(good, good, good, None, good, good), good, BETA)
    with pytest.raises(ValueError, match="expected losses of shape"):
        pair_metrics(scores_of(good, good, good, good, good, good), bad, BETA)


def test_demonstrations_are_weighted_by_tokens():
    rows = [ResponseScores(mx.array([-10.0, -2.0]), tokens=mx.array([5, 1]))]
    rows.append(ResponseScores(mx.array([-6.0]), tokens=mx.array([6])))
    sums = Sums()
    for scores in rows:
        sums.add(demonstration_metrics(scores))
    assert sums.means() == pytest.approx({"loss": 18 / 12, "logps/chosen": -6.0})


def test_log_ratios_are_subtracted_in_float32():
    # 512.0 and 510.0 are bfloat16 numbers; 0.5 nats between 2.5 and 3.0 survive only if the cast comes first.
    policy, reference = mx.array([-512.0, 3.0]).astype(mx.bfloat16), mx.array([-510.0, 2.5])
    scores = ResponseScores(policy, reference)
    assert scores.log_ratio.dtype == mx.float32
    np.testing.assert_array_equal(np.array(scores.log_ratio), [-2.0, 0.5])
    chosen, _ = PairScores(scores, scores).rewards(0.1)
    np.testing.assert_allclose(np.array(chosen), [-0.2, 0.05], rtol=1e-6)


def test_pair_scores_without_counts_say_so():
    zeros = mx.zeros((2,))
    with pytest.raises(ValueError, match="pass chosen_tokens"):
        _ = ResponseScores(zeros, zeros).length
    with pytest.raises(ValueError, match="compares with a reference"):
        _ = ResponseScores(zeros).log_ratio
