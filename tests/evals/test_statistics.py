"""Every formula against an oracle, and what swapping the two models must do.

The oracles' packages take seconds to import, and every process that tests imports this module.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from localdpo.evals import statistics as stat

pytestmark = pytest.mark.slow

SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), min_size=1, max_size=300)


@pytest.mark.parametrize(("wins", "n"), [(0, 1), (1, 1), (31, 50), (124, 200), (62.5, 100), (5000, 9000)])
def test_wilson_is_statsmodels_wilson(wins: float, n: int) -> None:
    from statsmodels.stats.proportion import proportion_confint

    found = stat.wilson(wins / n, n)
    low, high = proportion_confint(wins, n, method="wilson")
    assert found.value == wins / n
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_the_interval_of_62_in_100_on_30_prompts() -> None:
    found = stat.wilson(0.62, 30)
    assert found.low is not None
    assert found.high is not None
    assert (round(100 * found.low), round(100 * found.high)) == (44, 77)
    assert not found.excludes(0.5)


@pytest.mark.parametrize(("rate", "n"), [(0.5, 0), (-0.1, 5), (1.1, 5), (math.nan, 5)])
def test_wilson_refuses_what_is_no_rate(rate: float, n: int) -> None:
    with pytest.raises(ValueError, match="wilson"):
        stat.wilson(rate, n)


@given(SCORES)
def test_swapping_the_models_gives_one_less_the_rate(scores: list[float]) -> None:
    found, swapped = stat.win_rate(scores), stat.win_rate([1 - s for s in scores])
    assert swapped.value == pytest.approx(1 - found.value, abs=1e-15)
    assert found.low is not None
    assert found.high is not None
    assert (swapped.low, swapped.high) == pytest.approx((1 - found.high, 1 - found.low), abs=1e-12)
    assert stat.sign_test(scores) == pytest.approx(stat.sign_test([1 - s for s in scores]), abs=1e-12)
    assert stat.prompts_needed(found.value) == stat.prompts_needed(1 - found.value)


@pytest.mark.parametrize("verdict", [0.0, 0.5, 1.0])
def test_one_sided_and_all_tied_results_do_not_crash(verdict: float) -> None:
    found, p = stat.win_rate([verdict] * 40), stat.sign_test([verdict] * 40)
    assert found.value == verdict
    assert p == (1.0 if verdict == 0.5 else pytest.approx(2 * 0.5**40))


def test_the_sign_test_leaves_ties_out() -> None:
    from scipy.stats import binomtest

    scores = [1.0] * 30 + [0.75] * 5 + [0.5] * 100 + [0.25] * 2 + [0.0] * 8
    assert stat.sign_test(scores) == pytest.approx(binomtest(35, 45).pvalue)


@pytest.mark.parametrize("scores", [[], [[0.5]], [1.2], [math.nan]])
def test_what_is_no_list_of_scores_is_refused(scores: list[object]) -> None:
    with pytest.raises(ValueError, match="score"):
        stat.win_rate(scores)


@pytest.mark.parametrize("rate", [0.55, 0.62, 0.7, 0.4])
@pytest.mark.every(4)
def test_with_the_prompts_needed_four_runs_in_five_would_tell(rate: float) -> None:
    needed = stat.prompts_needed(rate)
    assert needed is not None
    wins = np.random.default_rng(0).binomial(needed, rate, size=4000)
    told = np.mean([stat.wilson(w / needed, needed).excludes(0.5) for w in wins])
    assert told == pytest.approx(0.8, abs=0.05)


def test_no_number_of_prompts_tells_a_half_from_a_half() -> None:
    assert stat.prompts_needed(0.5) is None
    assert stat.prompts_needed(1.0) == 4
    with pytest.raises(ValueError, match="rate"):
        stat.prompts_needed(1.5)


def test_a_judge_that_always_says_first_is_all_bias() -> None:
    found = stat.position_bias([2] * 50, [0] * 50)
    assert found is not None
    assert found.value == 0.5
    assert found.excludes(0.0)


def test_a_judge_that_agrees_with_itself_has_no_bias() -> None:
    found = stat.position_bias([1] * 50, [1] * 50)
    assert found is not None
    assert found.value == 0.0
    assert not found.excludes(0.0)
    assert stat.position_bias([0, 0], [0, 0]) is None


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=100))
def test_bias_has_the_sign_of_the_side_preferred(counts: list[tuple[int, int]]) -> None:
    assume(any(a + b for a, b in counts))
    first, second = zip(*counts, strict=True)
    found, swapped = stat.position_bias(first, second), stat.position_bias(second, first)
    assert found is not None
    assert swapped is not None
    assert found.value == pytest.approx(-swapped.value, abs=1e-12)


def test_a_paired_difference_has_the_interval_of_scipys_bootstrap() -> None:
    from scipy import stats

    rng = np.random.default_rng(3)
    a, b = rng.random(120), rng.random(120) + 0.1
    found = stat.paired_difference(a, b, seed=1)
    level = 1 - 2 * stats.norm.cdf(-math.sqrt(120 / 119) * stats.t.ppf(0.975, 119))
    rng = np.random.default_rng(0)
    oracle = stats.bootstrap((b - a,), np.mean, confidence_level=level, method="percentile", rng=rng)
    assert found.value == pytest.approx(float((b - a).mean()))
    assert found.low == pytest.approx(oracle.confidence_interval.low, abs=0.005)
    assert found.high == pytest.approx(oracle.confidence_interval.high, abs=0.005)


def test_a_paired_difference_is_the_same_for_the_same_seed_however_it_is_cut(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    a, b = np.arange(30.0), np.arange(30.0) ** 1.1
    found = stat.paired_difference(a, b, seed=4)
    assert stat.paired_difference(a, b, seed=4) == found
    assert stat.paired_difference(a, b, seed=5) != found
    monkeypatch.setattr(stat, "_BLOCK", 30 * 7)
    cut = stat.paired_difference(a, b, seed=4)
    assert (cut.low, cut.high) == pytest.approx((found.low, found.high), abs=1e-12)


def test_few_prompts_give_a_difference_without_an_interval() -> None:
    found = stat.paired_difference([1.0] * 9, [3.0] * 9)
    assert (found.value, found.low, found.high) == (2.0, None, None)
    assert not found.excludes(0.0)
    with pytest.raises(ValueError, match="one length"):
        stat.paired_difference([1.0], [1.0, 2.0])


@pytest.mark.parametrize("n", [10, 25])
@pytest.mark.every(2)
def test_small_samples_are_covered_nearly_as_often_as_promised(n: int) -> None:
    rng = np.random.default_rng(5)
    draws = rng.normal(0.3, 1.0, size=(400, n))
    held = [not stat.paired_difference(np.zeros(n), row, resamples=1000).excludes(0.3) for row in draws]
    assert np.mean(held) == pytest.approx(0.95, abs=0.035)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=2, max_size=60))
def test_kappa_is_statsmodels_kappa(ratings: list[tuple[int, int]]) -> None:
    from statsmodels.stats.inter_rater import cohens_kappa

    one, other = zip(*ratings, strict=True)
    found = stat.quadratic_kappa(one, other, [1, 2, 3, 4, 5])
    table = np.zeros((5, 5))
    for a, b in ratings:
        table[a - 1, b - 1] += 1
    if found is None:
        assert len({*one, *other}) == 1
    else:
        assert found == pytest.approx(cohens_kappa(table, wt="quadratic", return_results=False), abs=1e-6)


def test_kappa_refuses_what_it_cannot_place() -> None:
    with pytest.raises(ValueError, match="outside the categories"):
        stat.quadratic_kappa([1, 6], [1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="two ratings"):
        stat.quadratic_kappa([], [], [1, 2])


def drawn(n: int, theta: float, phi: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of n prompts and length differences, from the model that length_controlled fits."""
    rng = np.random.default_rng(seed)
    d = rng.normal(size=n) * 30
    p = 1 / (1 + np.exp(-(theta + phi * np.tanh(d / d.std()))))
    return (rng.random(n) < p).astype(float), d


def test_length_control_is_statsmodels_logit_without_the_ridge() -> None:
    import statsmodels.api as sm

    s, d = drawn(400, 0.3, 1.0)
    s[:100] = 0.5
    x = np.tanh(d / d.std())
    oracle = sm.GLM(s, sm.add_constant(x), family=sm.families.Binomial()).fit(tol=1e-12)
    weights, covariance = stat.fit_logistic(s, x, ridge=0.0)
    assert weights == pytest.approx(oracle.params, abs=1e-6)
    assert covariance == pytest.approx(oracle.cov_params(), abs=1e-6)


def test_length_control_takes_the_pull_of_length_away() -> None:
    s, d = drawn(4000, 0.0, 1.5)
    found = stat.length_controlled(s, d + 20)
    assert found.rate is not None
    assert found.phi is not None
    assert found.phi > 1
    assert found.rate.excludes(0.5)  # at +20 the true rate is above one half
    even = stat.length_controlled(s, d)
    assert even.rate is not None
    assert even.rate.value == pytest.approx(0.5, abs=0.03)
    assert not even.rate.excludes(0.5)


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.floats(-2, 2), st.floats(-2, 2))
def test_swapping_the_models_turns_the_length_controlled_rate_round(
    seed: int, theta: float, phi: float
) -> None:
    s, d = drawn(150, theta, phi, seed)
    found, swapped = stat.length_controlled(s, d), stat.length_controlled(1 - s, -d)
    assert found.rate is not None
    assert swapped.rate is not None
    assert swapped.rate.value == pytest.approx(1 - found.rate.value, abs=1e-6)
    assert swapped.rate.low == pytest.approx(1 - found.rate.high, abs=1e-6)


@pytest.mark.parametrize(
    ("n", "longer", "why"),
    [(99, 50, "99 prompts"), (200, 10, "5% of the answers are longer"), (200, 0, "0%")],
)
def test_length_control_is_refused_where_it_would_guess(n: int, longer: int, why: str) -> None:
    d = np.where(np.arange(n) < longer, 10.0, -10.0)
    found = stat.length_controlled(np.ones(n), d)
    assert found.rate is None
    assert why in found.refused


def test_a_model_that_wins_everything_keeps_a_finite_rate() -> None:
    found = stat.length_controlled(np.ones(200), np.where(np.arange(200) % 2, 1.0, -1.0))
    assert found.rate is not None
    assert 0.99 < found.rate.value < 1
    assert found.rate.low is not None
    assert found.rate.low < 0.99
    even = stat.length_controlled(np.full(200, 0.5), np.where(np.arange(200) % 2, 1.0, -1.0))
    assert even.rate is not None
    assert (even.rate.low, even.rate.high) == pytest.approx((0.432, 0.568), abs=0.002)


def tables(n: int, seed: int = 0) -> np.ndarray:
    """[n, 3, 3] of random results with ties."""
    rng = np.random.default_rng(seed)
    found = np.zeros((n, 3, 3))
    for i, j, bias in ((0, 1, 0.3), (0, 2, 0.2), (1, 2, 0.4)):
        found[:, i, j] = np.clip(np.round((rng.random(n) - 0.5 + bias) * 2) / 2, 0, 1)
        found[:, j, i] = 1 - found[:, i, j]
    return found


def test_strengths_are_choix_strengths_without_the_ridge() -> None:
    import choix

    wins = tables(300).sum(axis=0)
    oracle = choix.ilsr_pairwise_dense(wins, max_iter=10_000, tol=1e-13)
    assert stat.strengths(wins, ridge=0.0) == pytest.approx(oracle - oracle[0], abs=1e-6)


def test_many_tables_at_once_are_the_same_as_one_by_one() -> None:
    many = np.stack([tables(50, seed).sum(axis=0) for seed in range(4)])
    together = stat.strengths(many)
    for one, theta in zip(many, together, strict=True):
        assert stat.strengths(one) == pytest.approx(theta, abs=1e-9)


def test_two_models_have_the_logit_of_their_rate() -> None:
    theta = stat.strengths([[0.0, 40.0], [160.0, 0.0]], ridge=0.0)
    assert theta == pytest.approx([0.0, math.log(4)], abs=1e-9)


def test_the_ranking_has_the_base_at_0_and_intervals_that_hold_the_strengths() -> None:
    found = stat.ranking(tables(200), seed=2)
    assert (found[0].value, found[0].low, found[0].high) == (0.0, 0.0, 0.0)
    assert stat.ranking(tables(200), seed=2) == found
    for each in found[1:]:
        assert each.low is not None
        assert each.high is not None
        assert each.low < each.value < each.high


def test_a_model_that_never_lost_has_a_finite_strength() -> None:
    wins = np.zeros((100, 2, 2))
    wins[:, 1, 0] = 1
    found = stat.ranking(wins)
    assert 5 < found[1].value < 20


def test_tables_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="square"):
        stat.strengths(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="prompts, models"):
        stat.ranking(np.zeros((0, 3, 3)))
