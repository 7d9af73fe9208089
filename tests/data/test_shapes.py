"""The shapes of a traced run: every micro-batch fits one of a few, and what that costs is counted right."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localdpo.data.batches import MULTIPLE, NARROWEST, Shape, columns, plan_shapes

pytestmark = pytest.mark.slow

RESPONSES = 2
sizes = st.tuples(st.integers(1, 3), st.integers(1, 700), st.integers(1, 700), st.integers(2, 1400))


def with_wholes(rows: list[tuple[int, int, int, int]]) -> np.ndarray:
    """Needs of micro-batches whose longest prompt has the longest response."""
    return np.array([(p, context + response, response, t) for p, context, response, t in rows])


needs_of_a_run = st.lists(sizes, min_size=1, max_size=20).map(with_wholes)


def real(needs: np.ndarray) -> int:
    """Some number of tokens that such micro-batches can hold."""
    return int(columns(needs, RESPONSES).sum())


def as_shape(sizes: np.ndarray) -> Shape:
    return Shape(*(int(size) for size in sizes))


def cost(shape: Shape) -> int:
    tokens = shape.rows * (shape.context + RESPONSES * shape.response)
    return tokens + shape.packed


@given(needs_of_a_run, st.integers(3, 16))
def test_every_micro_batch_fits_one_of_few_shapes_and_the_figures_are_those_of_the_table(
    needs: np.ndarray, most: int
) -> None:
    table = plan_shapes(needs, RESPONSES, real=real(needs), most=most)
    assert 1 <= len(table.shapes) == len(set(table.shapes)) <= most
    taken = [table.of(as_shape(need)) for need in needs]
    for need, shape in zip(needs, taken, strict=True):
        assert shape is not None
        assert shape.rows == need[0]
        assert (np.array([shape.whole, shape.response, shape.packed]) >= need[1:]).all()
        assert min(shape.context, shape.response, shape.packed) >= NARROWEST
        cheaper = [other for other in table.shapes if cost(other) < cost(shape)]
        assert not any(other.holds(as_shape(need)) for other in cheaper)
    assert table.planned == len(needs)
    assert table.computed == sum(cost(shape) for shape in taken if shape is not None)
    assert table.padding == pytest.approx(1 - real(needs) / table.computed)
    assert 0 <= table.least_padding <= table.padding < 1


@settings(max_examples=30)
@given(needs_of_a_run, st.integers(3, 16), st.randoms())
def test_the_table_does_not_depend_on_the_order_of_the_micro_batches(
    needs: np.ndarray, most: int, random: Random
) -> None:
    order = list(range(len(needs)))
    random.shuffle(order)
    table = plan_shapes(needs, RESPONSES, real=1, most=most)
    assert plan_shapes(needs[order], RESPONSES, real=1, most=most) == table


@settings(max_examples=30)
@given(needs_of_a_run)
def test_shapes_are_as_small_as_what_they_hold_and_never_too_narrow(needs: np.ndarray) -> None:
    table = plan_shapes(needs, RESPONSES, real=1, most=16)
    for axis, name in ((2, "response"), (3, "packed")):
        rounded = {max(NARROWEST, -(-int(need) // MULTIPLE) * MULTIPLE) for need in needs[:, axis]}
        assert {getattr(shape, name) for shape in table.shapes} <= rounded
    assert all(shape.whole % MULTIPLE == 0 for shape in table.shapes)
    assert max(shape.whole for shape in table.shapes) <= needs[:, 1].max() + 2 * NARROWEST


def test_as_many_shapes_as_needs_pad_to_the_multiple_only() -> None:
    needs = with_wholes([(1, 100, 50, 90), (1, 96, 48, 88), (4, 16, 16, 64)])
    table = plan_shapes(needs, RESPONSES, real=real(needs), most=3)
    assert set(table.shapes) == {Shape(1, 152, 56, 96), Shape(1, 144, 48, 88), Shape(4, 32, 16, 64)}
    assert table.padding == table.least_padding


def test_the_two_that_add_the_least_share_a_shape() -> None:
    needs = with_wholes([(1, 16, 16, 16), (1, 24, 16, 16), (1, 400, 16, 16)])
    table = plan_shapes(needs, RESPONSES, real=1, most=2)
    assert table.shapes == (Shape(1, 40, 16, 16), Shape(1, 416, 16, 16))


def test_whole_sequences_have_no_context() -> None:
    needs = with_wholes([(2, 0, 100, 300), (2, 0, 30, 100)])
    shapes = plan_shapes(needs, RESPONSES, real=1, most=16).shapes
    assert shapes == (Shape(2, 32, 32, 104), Shape(2, 104, 104, 304))
    assert {shape.context for shape in shapes} == {0}


def test_a_long_prompt_with_a_short_answer_fits_where_its_end_can_head_the_answer() -> None:
    shape = Shape(1, 300, 200, 400)
    assert (shape.context, shape.holds(Shape(1, 300, 20, 40))) == (100, True)
    assert not shape.holds(Shape(1, 301, 20, 40))
    assert not shape.holds(Shape(1, 220, 201, 400))


def test_lengths_spread_along_one_axis_are_padded_by_less_than_a_tenth() -> None:
    """Responses from 32 to 1,024 tokens: 15 widths are enough. Two axes at once are not; see the table."""
    lengths = np.random.default_rng(0).integers(32, 1025, 20_000)
    needs = np.column_stack([np.ones_like(lengths), 64 + lengths, lengths, 2 * lengths])
    table = plan_shapes(needs, RESPONSES, real=real(needs), most=15)
    assert table.padding < 0.1
    assert table.least_padding < 0.02


def test_more_numbers_of_rows_than_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 2 different"):
        plan_shapes(with_wholes([(n, 8, 8, 8) for n in (1, 2, 3)]), RESPONSES, real=1, most=2)


def test_a_micro_batch_that_was_not_planned_may_fit_nothing() -> None:
    table = plan_shapes(with_wholes([(1, 100, 50, 90)]), RESPONSES, real=1, most=16)
    assert table.of(Shape(1, 200, 50, 90)) is None
    assert table.of(Shape(2, 75, 25, 40)) is None
