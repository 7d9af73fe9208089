"""Metrics of single responses: each label over its own rows, and sums that do not depend on the split."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loss_oracles import unpaired_loss

from localdpo.objective.metrics import Sums, unpaired_metrics
from localdpo.objective.scores import ResponseScores, UnpairedScores

BETA = 0.1
POLICY = [-10.0, -20.0, -30.0, -9.0]  # log-ratios +2, -1, 1, -3
REFERENCE = [-12.0, -19.0, -31.0, -6.0]
LABELS = [True, True, False, True]
TOKENS = [4, 10, 6, 20]


def metrics_of(policy, reference, labels, tokens, z=0.5, weights=None):
    p, r, n = (mx.array(np.asarray(a, dtype=np.float32)) for a in (policy, reference, tokens))
    good, baseline = mx.array(labels), mx.array(z)
    losses = unpaired_loss("kto", p, r, good, baseline=baseline, beta=BETA)
    scores = UnpairedScores(ResponseScores(p, r, n), good, None if z is None else baseline)
    return unpaired_metrics(scores, losses, BETA, weights)


def test_a_row_that_fills_a_place_counts_nothing():
    expected = metrics_of(POLICY, REFERENCE, LABELS, TOKENS)
    arrays = [[*a, a[0], a[0]] for a in (POLICY, REFERENCE, LABELS, TOKENS)]
    filled = metrics_of(*arrays, weights=mx.array([1.0] * 4 + [0.0] * 2))
    for name, pair in expected.items():
        np.testing.assert_allclose(np.array(filled[name]), np.array(pair), rtol=1e-6, err_msg=name)


def test_values_by_hand():
    means = Sums().add(metrics_of(POLICY, REFERENCE, LABELS, TOKENS)).means()
    ratios, signs = np.array([2.0, -1.0, 1.0, -3.0]), np.where(LABELS, 1.0, -1.0)
    assert means == pytest.approx(
        {
            "loss": np.mean(1 / (1 + np.exp(BETA * signs * (ratios - 0.5)))),
            "rewards/chosen": BETA * (2 - 1 - 3) / 3,
            "rewards/rejected": BETA * 1.0,
            "rewards/margins": BETA * (-2 / 3 - 1),
            "logps/chosen": -39 / 3,
            "logps/rejected": -30.0,
            "logratio_per_token/chosen": -2 / 34,
            "logratio_per_token/rejected": 1 / 6,
            "displacement": 2 / 3,
            "kl_baseline": 0.5,
        },
        rel=1e-6,
    )


@pytest.mark.parametrize(
    ("label", "there", "absent"), [(True, "chosen", "rejected"), (False, "rejected", "chosen")]
)
def test_a_label_without_rows_is_absent_and_not_zero(label, there, absent):
    means = Sums().add(metrics_of(POLICY, REFERENCE, [label] * 4, TOKENS)).means()
    for name in ("rewards", "logps", "logratio_per_token"):
        assert f"{name}/{there}" in means
        assert f"{name}/{absent}" not in means
    assert "rewards/margins" not in means
    assert ("displacement" in means) == label


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**16), cuts=st.lists(st.integers(1, 23), max_size=4, unique=True))
def test_any_split_gives_the_figures_of_the_whole(seed, cuts):
    rng = np.random.default_rng(seed)
    policy, reference = rng.normal(-20, 5, (2, 24))
    arrays = (policy, reference, rng.random(24) < 0.3, rng.integers(1, 30, 24))
    whole = Sums().add(metrics_of(*arrays)).means()
    split = Sums()
    for start, stop in pairwise([0, *sorted(cuts), 24]):
        split.add(metrics_of(*(a[start:stop] for a in arrays)))
    assert split.means() == pytest.approx(whole, rel=1e-5, abs=1e-5)


def test_works_inside_a_compiled_and_differentiated_step():
    good, n, z = mx.array(LABELS), mx.array(TOKENS), mx.array(4.0)
    policy, reference = mx.array(POLICY), mx.array(REFERENCE)

    def objective(p, count, z):
        losses = unpaired_loss("kto", p, reference, good, baseline=z, beta=BETA)
        sums = unpaired_metrics(UnpairedScores(ResponseScores(p, reference, n), good, z), losses, BETA)
        return sums["loss"][0] / count, sums

    # The number of rows and the baseline are equal scalars, which mx.compile merges.
    (value, sums), _ = mx.compile(mx.value_and_grad(objective))(policy, mx.array(4.0), z)
    means = Sums().add(sums).means()
    assert means["loss"] == pytest.approx(value.item(), rel=1e-6)
    assert means == pytest.approx(
        Sums().add(metrics_of(POLICY, REFERENCE, LABELS, TOKENS, 4.0)).means(), rel=1e-5
    )


def test_margins_of_pairs_stay_the_mean_of_their_margins():
    sums = Sums().add(
        {"rewards/chosen": (3.0, 2.0), "rewards/rejected": (1.0, 2.0), "rewards/margins": (5.0, 2.0)}
    )
    assert sums.means()["rewards/margins"] == 2.5


def test_shapes_that_differ_are_refused():
    four = mx.zeros((4,))
    scores = UnpairedScores(ResponseScores(four, four, four), mx.array([True]))
    with pytest.raises(ValueError, match="one shape"):
        unpaired_metrics(scores, four, BETA)
