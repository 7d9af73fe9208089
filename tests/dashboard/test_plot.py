from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo.dashboard.axes import Axis, Scale
from localdpo.dashboard.plot import (
    Stroke,
    band,
    braille,
    dots,
    envelope,
    gap_columns,
    means,
    smooth,
    smooth_on,
    stroke,
)

pytestmark = pytest.mark.slow

ANY = st.one_of(
    st.floats(-1e3, 1e3), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e300, -1e300, 5e-324])
)
lists = st.lists(ANY, max_size=60)
columns = st.integers(1, 90)


def slow_average(values: list[float], weight: float) -> list[float]:
    """The moving average as its formula says, one value after the other."""
    found, average, count = [], 0.0, 0
    for value in values:
        if not math.isfinite(value):
            found.append(math.nan)
            continue
        count += 1
        average = weight * average + (1 - weight) * value
        found.append(average / (1 - weight**count))
    return found


@given(st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(math.nan)), max_size=200), st.floats(0.05, 0.995))
def test_the_moving_average_is_the_one_of_the_formula(values: list[float], weight: float):
    found = smooth(np.array(values), weight)
    assert np.allclose(found, slow_average(values, weight), rtol=1e-9, atol=1e-9, equal_nan=True)


@given(st.lists(st.one_of(st.floats(-1e3, 1e3), st.just(math.nan)), min_size=1, max_size=200), st.data())
def test_a_grown_average_is_the_one_of_all(values: list[float], data: st.DataObject):
    known = data.draw(st.integers(0, len(values)))
    array = np.array(values)
    grown = smooth_on(smooth(array[:known], 0.9), array, 0.9)
    assert np.allclose(grown, smooth(array, 0.9), rtol=1e-9, atol=1e-9, equal_nan=True)


def test_no_smoothing_gives_the_values_and_gaps():
    assert np.array_equal(smooth(np.array([1.0, math.inf, 3.0]), 0.0), [1.0, math.nan, 3.0], equal_nan=True)


@given(lists)
def test_huge_values_are_averaged_without_overflow(values: list[float]):
    array = np.array(values)
    found = smooth(array, 0.9)
    known = array[np.isfinite(array)]
    if len(known):
        limit = np.abs(known).max() * (1 + 1e-9)
        assert np.nanmax(np.abs(found)) <= limit


@given(lists, columns)
def test_every_column_keeps_its_smallest_and_largest_value(values: list[float], count: int):
    array = np.array(values)
    steps = np.arange(len(array))
    axis = Axis(0.0, max(1.0, len(array) - 1.0), count)
    bounds = axis.bounds(steps)
    low, high = envelope(array, bounds)
    assert bounds[0] == 0
    assert bounds[-1] == len(array)
    for column in range(count):
        inside = array[bounds[column] : bounds[column + 1]]
        inside = inside[np.isfinite(inside)]
        assert (np.isnan(low[column]), np.isnan(high[column])) == (not len(inside),) * 2
        if len(inside):
            assert (low[column], high[column]) == (inside.min(), inside.max())


@given(lists, columns)
def test_a_band_holds_all_values_and_invents_none(values: list[float], count: int):
    array = np.array(values)
    bounds = Axis(0.0, max(1.0, len(array) - 1.0), count).bounds(np.arange(len(array)))
    low, high = envelope(array, bounds)
    wide_low, wide_high = band(array, bounds)
    seen = ~np.isnan(low)
    assert (wide_low[seen] <= low[seen]).all()
    assert (wide_high[seen] >= high[seen]).all()
    known = array[np.isfinite(array)]
    assert np.isin(wide_low[~np.isnan(wide_low)], known).all()
    assert np.isin(wide_high[~np.isnan(wide_high)], known).all()


def test_means_of_columns():
    bounds = Axis(0, 5, 3).bounds(np.arange(6))
    assert means(np.arange(6.0), bounds).tolist() == [0.5, 2.5, 4.5]
    assert means(np.full(6, 1e308), bounds) == pytest.approx([1e308] * 3)


def test_gaps_are_found_in_their_column():
    values = np.array([0.0, math.nan, 1.0, 2.0, math.inf, 3.0])
    assert gap_columns(values, Axis(0, 5, 3).bounds(np.arange(6))).tolist() == [True, False, True]


@given(lists, columns, st.integers(1, 60), st.booleans(), st.booleans())
def test_a_line_is_drawn_within_its_rows_and_never_where_nothing_is(
    values: list[float], count: int, rows: int, log: bool, mean: bool
):
    array = np.array(values)
    scale = Scale(1e-3 if log else -1e3, 1e3, rows, log)
    line = stroke(np.arange(len(array)), array, Axis(0.0, max(1.0, len(array) - 1.0), count), scale, mean)
    drawn = dots(line, rows)
    assert drawn.shape == (rows, count)
    able = np.isfinite(array) & ((array > 0) | (not log))
    if not able.any():
        assert not drawn.any()
    elif not np.isnan(line.top).all():
        assert np.nanmin(line.top) >= 0
        assert np.nanmax(line.bottom) <= rows - 1


def test_a_line_through_every_column_has_no_holes():
    steps = np.arange(200)
    line = stroke(steps, np.sin(steps / 7) * 3, Axis(0, 199, 50), Scale(-3, 3, 40))
    assert not np.isnan(line.top).any()
    reach = zip(line.top[1:], line.bottom[1:], line.top[:-1], line.bottom[:-1], strict=True)
    assert all(top <= before + 1 and bottom >= above - 1 for top, bottom, above, before in reach)


def test_points_far_apart_are_joined_but_not_across_a_gap():
    steps = np.array([0, 40, 60, 100])
    axis, scale = Axis(0, 100, 100), Scale(0, 1, 10)
    whole = stroke(steps, np.array([0.1, 0.9, 0.9, 0.1]), axis, scale)
    assert not np.isnan(whole.top).any()
    broken = stroke(np.array([0, 40, 50, 60, 100]), np.array([0.1, 0.9, math.nan, 0.9, 0.1]), axis, scale)
    assert np.isnan(broken.top[41:60]).all()
    assert not np.isnan(broken.top[:40]).any()
    assert not np.isnan(broken.top[61:99]).any()


def test_neighbours_with_a_gap_between_them_are_not_joined():
    steps = np.array([0, 1, 2])
    line = stroke(steps, np.array([0.0, math.nan, 1.0]), Axis(0, 2, 2), Scale(0, 1, 20))
    assert (line.top[0], line.bottom[0], line.top[1], line.bottom[1]) == (19, 19, 0, 0)


def test_a_line_comes_in_from_outside_the_window():
    steps = np.array([0, 100])
    line = stroke(steps, np.array([0.0, 1.0]), Axis(40, 60, 10), Scale(0, 1, 100))
    assert not np.isnan(line.top).any()
    assert line.top[0] == pytest.approx(59, abs=2)


def test_braille_cells_are_those_of_unicode():
    for bit, (row, column) in enumerate([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (3, 0), (3, 1)]):
        drawn = np.zeros((4, 2), dtype=bool)
        drawn[row, column] = True
        assert braille(drawn).tolist() == [[1 << bit]]
    assert braille(np.ones((8, 4), dtype=bool)).tolist() == [[255, 255], [255, 255]]


def test_a_pattern_leaves_columns_out():
    line = Stroke(np.zeros(6), np.zeros(6))
    assert dots(line, 1, (3, 2))[0].tolist() == [True, True, False, True, True, False]
