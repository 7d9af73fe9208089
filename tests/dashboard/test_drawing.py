from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.style import Style

from localdpo.dashboard.drawing import ChartSeries, Face, Kind, ReferenceValue, draw
from localdpo.dashboard.picture import COLOURS, Picture, blend, fitted
from localdpo.dashboard.plot import smooth
from localdpo.dashboard.terminal import PALETTES

values = st.one_of(
    st.floats(-10, 10), st.sampled_from([math.nan, math.inf, -math.inf, 1e300, -1e300, 5e-324, 0.0])
)
TITLES = ("a reward margin (nats)", "margin")


def series(points: list[float], name: str = "train", kind: Kind = "line", weight: float = 0.9) -> ChartSeries:
    array = np.array(points)
    line = smooth(array, weight) if kind != "points" else None
    return ChartSeries(name, np.arange(len(array)), array, "chosen", kind, kind == "line", line)


def text_in(picture: Picture) -> str:
    """The characters of a picture, a line a row."""
    return "\n".join(row.tobytes().decode("utf-32-le") for row in picture.codes)


def text_of(width: int, height: int, *shown: ChartSeries, **look: object) -> list[str]:
    face = Face(TITLES, look.pop("window", (0.0, 100.0)), **look)  # type: ignore[arg-type]
    return text_in(draw(width, height, shown, face).picture).split("\n")


@given(
    st.lists(st.lists(values, max_size=30), max_size=4),
    st.integers(1, 90),
    st.integers(1, 30),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.none() | st.floats(0, 40),
    st.tuples(st.floats(0, 20), st.floats(0.5, 30)),
)
def test_any_series_at_any_size_can_be_drawn(
    many: list[list[float]],
    width: int,
    height: int,
    ascii: bool,
    shade: bool,
    log: bool,
    cursor: float | None,
    window: tuple[float, float],
):
    kinds: list[Kind] = ["line", "dashed", "dotted", "points"]
    shown = [series(points, "s", kind) for points, kind in zip(many, kinds, strict=False)]
    face = Face(
        TITLES, (window[0], window[0] + window[1]), (ReferenceValue(0.5, "half"),), log, cursor, ascii, shade
    )
    picture = draw(width, height, shown, face).picture
    lines = text_in(picture).split("\n")
    assert len(lines) == height
    assert all(len(line) == width for line in lines)
    assert not ascii or text_in(picture).isascii()
    for line in picture.strips(PALETTES["dark"]):
        assert "".join(segment.text for segment in line)
        assert all(isinstance(segment.style, Style) for segment in line)


def test_a_rising_line_goes_from_bottom_left_to_top_right():
    lines = text_of(60, 14, series([step / 100 for step in range(101)], weight=0.0))
    rows = [row for row, line in enumerate(lines) if any("\u2800" < char <= "\u28ff" for char in line)]
    first = [
        line.index(next(c for c in line if "\u2800" < c <= "\u28ff")) for line in (lines[r] for r in rows)
    ]
    assert rows == list(range(1, 12))
    assert first == sorted(first, reverse=True)
    assert lines[1].lstrip("│").startswith("1.0┤")
    assert "└0" in lines[12]
    assert lines[12].endswith("100│")


def test_a_gap_is_marked_on_the_axis_and_not_drawn_across():
    points = [0.5] * 40 + [math.nan] * 21 + [0.5] * 40
    lines = text_of(60, 10, series(points))
    axis = lines[8]
    assert "✖" in axis
    drawn = next(line for line in lines if "⠒" in line or "⠤" in line or "⣀" in line or "⠉" in line)
    places = [column for column, char in enumerate(axis) if char == "✖"]
    assert drawn[places[0] + 1 : places[-1]].strip(" ") == ""


def test_train_and_evaluation_differ_in_shape():
    points = series([0.3] * 20, "eval", "points")
    lines = "".join(text_of(60, 12, series([0.5] * 101), points))
    assert "◆ eval 0.3" in lines
    assert "━ train 0.5" in lines
    assert sum(line.count("◆") for line in text_of(60, 12, series([0.5] * 101), points)[1:-1]) > 5


def test_marks_that_crowd_leave_the_line_to_be_seen():
    lines = text_of(60, 12, series([0.5] * 101), series([0.5] * 101, "eval", "points"))
    row = next(line for line in lines[1:-1] if "◆" in line)
    assert 15 <= row.count("◆") <= 20
    assert row.rstrip("│").endswith("◆")


def test_two_series_of_marks_differ_too():
    lines = text_of(60, 12, series([0.5] * 9, "a", "points"), series([0.2] * 9, "b", "points"))
    assert "◆ a 0.5" in lines[-1]
    assert "◇ b 0.2" in lines[-1]


def test_a_value_to_compare_with_is_drawn_and_named():
    lines = text_of(
        60,
        12,
        series([0.9] * 101),
        series([0.1] * 9, "eval", "points"),
        references=(ReferenceValue(0.5, "chance"),),
    )
    assert any(line.count("┈") > 30 for line in lines)
    assert "┈ chance" in lines[-1]
    # Far beyond the data it would flatten everything.
    far = text_of(60, 12, series([0.9, 1.0] * 50), references=(ReferenceValue(50.0, "far"),))
    assert not any(line.count("┈") > 30 for line in far)


def test_the_cross_hair_shows_the_values_of_its_step():
    shown = series([step / 10 for step in range(101)])
    face = Face(TITLES, (0.0, 100.0), cursor=40.0)
    drawing = draw(60, 12, [shown], face)
    text = text_in(drawing.picture)
    assert "step 40" in text
    assert " 4 ╮" in text.split("\n")[0]
    column = next(
        column
        for column in range(60)
        if text.split("\n")[1][column] == "│" and 3 < column < 59 and column > 8
    )
    step = drawing.step_at(column)
    assert step is not None
    assert abs(step - 40) < 2
    assert drawing.step_at(0) is None


def test_the_legend_shows_what_has_room():
    shown = [series([0.5] * 9, name) for name in ("margin", "chosen", "rejected")]
    assert "margin 0.5" in text_of(70, 9, *shown)[-1]
    short = text_of(36, 9, *shown)[-1]
    assert "margin" in short
    assert "0.5" not in short
    assert "━ ━ ━" in text_of(18, 9, *shown)[-1]
    # One series alone has its value in the title.
    assert "margin" not in text_of(60, 9, shown[0])[-1]


def test_the_longest_title_that_fits_is_taken():
    assert TITLES[0] in text_of(60, 9, series([1.0]))[0]
    assert TITLES[0] not in text_of(24, 9, series([1.0]))[0]
    assert TITLES[1] in text_of(24, 9, series([1.0]))[0]
    assert text_of(12, 6, series([1.0]))[0].startswith("╭─ mar")


def test_a_band_is_a_tint_or_characters():
    noisy = series([0.0, 1.0] * 50)
    tinted = draw(60, 12, [noisy], Face(TITLES, (0.0, 100.0))).picture
    plain = draw(60, 12, [noisy], Face(TITLES, (0.0, 100.0), ascii=True)).picture
    for picture in (tinted, plain):
        strips = picture.strips(PALETTES["dark"])
        assert len({segment.style.bgcolor for strip in strips for segment in strip if segment.style}) == 2
    assert text_in(plain).isascii()
    assert "░" in "".join(text_of(60, 12, noisy, shade=True))
    assert ":" in "".join(text_of(60, 12, noisy, shade=True, ascii=True))
    smallest = ChartSeries("train", noisy.steps, noisy.values, "chosen")
    assert "░" not in "".join(text_of(60, 12, smallest, shade=True))


def test_values_beyond_the_scale_are_told():
    spiky = [0.5, 0.6] * 50
    spiky[30] = 500.0
    assert "▴" in "".join(text_of(60, 12, series(spiky, weight=0.999)))


def test_a_logarithmic_axis_leaves_out_what_is_not_above_zero():
    lines = text_of(
        60, 14, series([-1.0, 0.001, 0.01, 0.1, 1.0, 10.0], weight=0.0), log=True, window=(0.0, 5.0)
    )
    text = "\n".join(lines)
    assert all(label in text for label in ("0.001┤", "0.1┤", "10┤"))


@pytest.mark.parametrize(("width", "height"), [(10, 4), (4, 3), (3, 2), (1, 1)])
def test_the_smallest_charts_still_say_something(width: int, height: int):
    lines = text_of(width, height, series([0.1, 0.9] * 20))
    assert "".join(lines).strip()


def test_writing_beyond_the_edges_is_cut():
    picture = Picture(4, 2)
    picture.put(0, -2, "abcd", "ink")
    picture.put(1, 2, "xyz", "ink")
    picture.put(5, 0, "no")
    assert text_in(picture) == "cd  \n  xy"


def test_a_part_shares_its_cells():
    picture = Picture(4, 3)
    picture.part(1, 1, 2, 2).fill(np.ones((2, 2), dtype=bool), "#", "chosen")
    assert text_in(picture) == "    \n ## \n ## "


def test_every_colour_of_a_cell_has_a_style():
    for palette in PALETTES.values():
        picture = Picture(len(COLOURS), len(COLOURS))
        for place, colour in enumerate(COLOURS):
            picture.put(place, 0, "x" * len(COLOURS), colour)
            picture.tint(np.arange(len(COLOURS)) == np.full((len(COLOURS), 1), place), colour)
        segments = [segment for strip in picture.strips(palette) for segment in strip]
        assert all(isinstance(segment.style, Style) for segment in segments)


def test_colours_are_blended_and_texts_fitted():
    assert blend("#000000", "#ff8000", 0.5) == "#804000"
    assert fitted("reward margin", 8) == "reward …"
    assert fitted("reward", 8) == "reward"
    assert fitted("漢字漢字", 5) == "漢字…"
    assert fitted("abc", 0) == ""
