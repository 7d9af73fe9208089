"""Charts: round ticks, every point inside the frame, gaps, and shapes that tell the series apart."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo.pages import chart as charts
from localdpo.pages.chart import MOST_POINTS, Look, PlotSeries, axis, line_chart, thinned, ticks

pytestmark = pytest.mark.slow

FINITE = st.floats(-1e9, 1e9, allow_nan=False)


def series(*values: float | None, look: Look = "line", label: str = "loss") -> PlotSeries:
    return PlotSeries(label, look, tuple((float(x), y) for x, y in enumerate(values)))


@given(FINITE, st.floats(1e-6, 1e9))
def test_ticks_are_few_and_inside(low: float, span: float) -> None:
    high = low + span
    if not high > low or span < 1e-9 * abs(low):
        return
    found = ticks(low, high)
    assert 2 <= len(found) <= 2.6 * charts.TICKS
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in found)


def test_ticks_are_round() -> None:
    assert ticks(0.0, 1.0) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.0, 47.0) == [0.0, 10.0, 20.0, 30.0, 40.0]
    with pytest.raises(ValueError, match="low < high"):
        ticks(1.0, 1.0)


def test_an_axis_is_never_empty() -> None:
    assert axis([3.0]) == (2.7, 3.3)
    assert axis([0.0, 0.0]) == (-1.0, 1.0)
    assert axis([5.0], (0.0, 1.0)) == (0.0, 1.0)


@given(st.lists(st.one_of(st.none(), FINITE, st.just(math.nan)), min_size=1, max_size=40))
def test_every_point_is_inside_the_frame_and_finite(values: list[float | None]) -> None:
    found = line_chart("t", "y", [series(*values, look="circles")])
    known = [value for value in values if value is not None and math.isfinite(value)]
    if not known:
        assert found is None
        return
    assert found is not None
    [drawn] = found.series
    assert len(drawn.marks) == len(known)
    for x, y in drawn.marks:
        assert found.left <= x <= found.right
        assert found.top <= y <= found.bottom


def test_a_gap_parts_the_line_and_a_lonely_point_gets_a_mark() -> None:
    found = line_chart("t", "y", [series(1.0, 2.0, None, 3.0, None, 4.0, 5.0)])
    assert found is not None
    [drawn] = found.series
    assert len(drawn.runs) == 2
    assert len(drawn.marks) == 1


def test_higher_values_are_further_up() -> None:
    found = line_chart("t", "y", [series(1.0, 2.0, look="squares")])
    assert found is not None
    (_, low), (_, high) = found.series[0].marks
    assert high < low


def test_the_looks_differ_by_more_than_colour() -> None:
    from jinja2 import Environment, FileSystemLoader

    from localdpo.pages import TEMPLATES

    drawn = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True).from_string(
        "{% from 'chart.html.j2' import chart %}{{ chart(it) }}"
    )
    looks: tuple[Look, ...] = ("line", "thin", "circles", "diamonds", "squares")
    shapes = set()
    for look in looks:
        svg = drawn.render(it=line_chart("A < B", "y", [series(1.0, 2.0, look=look, label="<loss>")]))
        assert "A &lt; B" in svg
        assert "<loss>" not in svg
        legend = svg[svg.index("legend") :]
        for colour in charts.COLOURS.values():
            legend = legend.replace(colour, "")
        shapes.add(" ".join(legend.split()))
    assert len(shapes) == len(looks)


def test_many_points_keep_their_extremes() -> None:
    values = [math.sin(n / 50) for n in range(5000)]
    values[2222] = 9.0
    points: list[tuple[float, float | None]] = [(float(n), value) for n, value in enumerate(values)]
    points[3333] = (3333.0, None)
    kept = thinned(points)
    assert len(kept) <= 1.1 * MOST_POINTS
    assert (2222.0, 9.0) in kept
    assert (3333.0, None) in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_the_summary_says_where_it_starts_and_ends() -> None:
    found = line_chart("t", "y", [series(0.69, 0.5, 0.25)])
    assert found is not None
    assert found.summary == "loss: 0.69 at 0, 0.25 at 2"
