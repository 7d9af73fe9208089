from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo.dashboard.axes import Axis, StepView, right_edge

pytestmark = pytest.mark.slow


@given(
    st.lists(st.sampled_from(["in", "out", "left", "right"]), max_size=15), st.integers(0, 10**6), st.data()
)
def test_whatever_is_done_the_window_lies_within_the_run(acts: list[str], last: int, data: st.DataObject):
    view = StepView()
    for act in acts:
        around = data.draw(st.none() | st.floats(0, max(last, 1)))
        if act in ("in", "out"):
            view = view.zoomed(act == "in", 0.0, float(last), around)
        else:
            view = view.panned(-0.25 if act == "left" else 0.25, 0.0, float(last))
        left, right = view.window(0.0, float(last))
        assert 0.0 <= left < right <= max(last, 1.0)


def test_zooming_in_follows_the_newest_step_and_out_again_shows_all():
    view = StepView().zoomed(True, 0, 1000)
    assert view.window(0, 1000) == (500, 1000)
    assert view.window(0, 1100) == (600, 1100)
    assert view.zoomed(False, 0, 1000) == StepView()


def test_zooming_around_a_step_keeps_it_where_it_is():
    view = StepView().zoomed(True, 0, 1000, around=250.0)
    assert view.window(0, 1000) == (125, 625)
    assert view.window(0, 5000) == (125, 625)


def test_panning_stops_at_both_ends():
    view = StepView().zoomed(True, 0, 1000)
    assert view.panned(0.25, 0, 1000) == view
    earlier = view.panned(-0.25, 0, 1000)
    assert earlier.window(0, 1000) == (375, 875)
    assert earlier.panned(-9, 0, 1000).window(0, 1000) == (0, 500)
    assert StepView().panned(-0.25, 0, 1000) == StepView()


@given(st.integers(1, 10**6), st.none() | st.floats(5, 10**5))
def test_the_right_edge_leaves_little_room(last: int, span: float | None):
    edge = right_edge(last, None, span)
    assert last <= edge
    assert edge - last <= 0.0401 * (last if span is None else span)


def test_the_right_edge_stays_for_a_while_and_ends_with_the_run():
    assert len({right_edge(last, None) for last in range(10_000, 10_200)}) <= 2
    assert right_edge(998, 1000) == 1000
    assert right_edge(1000, 1000) == 1000
    assert right_edge(0, 1000) == 0


def test_columns_and_steps():
    axis = Axis(0.0, 100.0, 10)
    assert [axis.column(step) for step in (0, 9.9, 10, 100)] == [0, 0, 1, 9]
    assert axis.column(101) is None
    assert axis.step(0) == 5.0
    assert axis.bounds(np.array([0, 50, 99, 100, 200])).tolist() == [0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 4]
    assert axis.step(9) == pytest.approx(95)
