from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo.dashboard.axes import Scale, limits, short, short_step, ticks

ANY = st.one_of(
    st.floats(-1e6, 1e6),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([1e300, -1e300, 1e-300, 5e-324, 0.0]),
)


@given(st.lists(ANY, max_size=20), st.lists(ANY, max_size=20), st.booleans(), st.integers(1, 12))
def test_limits_hold_what_must_be_seen(must: list[float], bands: list[float], log: bool, count: int):
    low, high = limits([np.array(must)], [np.array(bands)], log, count)
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low < high
    assert low > 0 or not log
    inside = [v for v in must if math.isfinite(v) and abs(v) < 1e307 and (v > 1e-300 or not log)]
    slack = 1e-5 * (high / 2 - low / 2)
    assert all(low - slack <= v <= high + slack for v in inside)
    for value, label in ticks(low, high, count, log):
        assert math.isfinite(value)
        assert label
    assert len(ticks(low, high, count, log)) <= 8 * count + 12


def test_one_spike_does_not_flatten_the_rest():
    steady = np.linspace(0.0, 1.0, 64)
    assert limits([steady], [np.append(steady, 1000.0)]) == limits([steady], [steady])
    # A spike of the line itself is shown.
    assert limits([np.append(steady, 1000.0)], [])[1] >= 1000


def test_an_axis_of_nothing_but_zeros_has_none_below_it():
    assert limits([np.zeros(3)], [np.zeros(3)]) == (0.0, 1.0)


def test_limits_stay_while_the_data_grows_a_little():
    assert limits([np.array([0.0, 0.97])], []) == limits([np.array([0.0, 0.98])], [])


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0.0, 1.0, 4, ["0.00", "0.25", "0.50", "0.75", "1.00"]),
        (0.0, 1.2, 3, ["0.0", "0.5", "1.0"]),
        (-1.0, 1.0, 2, ["-1", "0", "1"]),
        (0.0, 20_000.0, 2, ["0", "10k", "20k"]),
        (0.0, 5e-6, 2, ["0", "2.5e-06", "5e-06"]),
    ],
)
def test_ticks_are_round_numbers(low: float, high: float, count: int, expected: list[str]):
    assert [label for _, label in ticks(low, high, count)] == expected


def test_ticks_of_a_logarithmic_axis_are_powers_of_ten():
    assert [label for _, label in ticks(1e-3, 1e3, 3, log=True)] == ["0.001", "0.1", "10", "1k"]
    assert [label for _, label in ticks(1.0, 40.0, 4, log=True)] == ["1", "2", "5", "10", "20"]


def test_the_scale_puts_the_largest_on_top():
    scale = Scale(0.0, 10.0, 5)
    assert [scale.row(value) for value in (0.0, 1.9, 2.1, 10.0)] == [4, 4, 3, 0]
    assert scale.row(10.5) is None
    assert scale.row(math.nan) is None
    assert Scale(1.0, 100.0, 4, log=True).row(10.1) == 1
    assert Scale(1.0, 100.0, 4, log=True).row(-1.0) is None
    assert Scale(-1e308, 1e308, 4).row(0.0) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.8312, "0.831"),
        (-0.1, "-0.1"),
        (1204, "1.2k"),
        (21_300_000, "21.3M"),
        (5e-6, "5e-06"),
        (0.0, "0"),
        (math.nan, "-"),
        (1e300, "1e+300"),
    ],
)
def test_short_numbers(value: float, text: str):
    assert short(value) == text


def test_steps_of_an_axis():
    assert [short_step(step) for step in (0, 950, 1204, 12_500, 2e6)] == ["0", "950", "1,204", "12.5k", "2M"]
