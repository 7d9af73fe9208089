"""The shapes of a traced run: every micro-batch fits one of a few, and what that costs is counted right."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localdpo.data.batches import MULTIPLE, NARROWEST, Shape, columns, dealt, plan_shapes

pytestmark = pytest.mark.slow

SEQUENCES = [None, 2]
sizes = st.tuples(st.integers(1, 3), st.integers(1, 700), st.integers(2, 1400))
needs_of_a_run = st.lists(sizes, min_size=1, max_size=20).map(np.array)


def real(needs: np.ndarray, sequences: int | None) -> int:
    """Some number of tokens that such micro-batches can hold."""
    return int(columns(needs, sequences).sum())


def as_shape(sizes: np.ndarray) -> Shape:
    return Shape(*(int(size) for size in sizes))


def cost(shape: Shape, sequences: int | None) -> int:
    return shape.width * (1 if sequences is None else shape.rows * sequences) + shape.scored


@given(needs_of_a_run, st.integers(3, 16), st.sampled_from(SEQUENCES))
def test_every_micro_batch_fits_one_of_few_shapes_and_the_figures_are_those_of_the_table(
    needs: np.ndarray, most: int, sequences: int | None
) -> None:
    table = plan_shapes(needs, sequences=sequences, real=real(needs, sequences), most=most)
    assert 1 <= len(table.shapes) == len(set(table.shapes)) <= most
    taken = [table.of(as_shape(need)) for need in needs]
    for need, shape in zip(needs, taken, strict=True):
        assert shape is not None
        assert shape.rows == need[0]
        assert (np.array([shape.width, shape.scored]) >= need[1:]).all()
        assert min(shape.width, shape.scored) >= NARROWEST
        cheaper = [other for other in table.shapes if cost(other, sequences) < cost(shape, sequences)]
        assert not any(other.holds(as_shape(need)) for other in cheaper)
    assert table.planned == len(needs)
    assert table.computed == sum(cost(shape, sequences) for shape in taken if shape is not None)
    lines = [1 if sequences is None else shape.rows * sequences for shape in taken if shape is not None]
    widths = [shape.width for shape in taken if shape is not None]
    assert table.scores == sum(n * width**2 for n, width in zip(lines, widths, strict=True))
    assert table.padding == pytest.approx(1 - real(needs, sequences) / table.computed)
    assert 0 <= table.least_padding <= table.padding < 1


@settings(max_examples=30)
@given(needs_of_a_run, st.integers(3, 16), st.randoms())
def test_the_table_does_not_depend_on_the_order_of_the_micro_batches(
    needs: np.ndarray, most: int, random: Random
) -> None:
    order = list(range(len(needs)))
    random.shuffle(order)
    table = plan_shapes(needs, sequences=None, real=1, most=most)
    assert plan_shapes(needs[order], sequences=None, real=1, most=most) == table


@settings(max_examples=30)
@given(needs_of_a_run)
def test_shapes_are_as_small_as_what_they_hold_and_never_too_narrow(needs: np.ndarray) -> None:
    table = plan_shapes(needs, sequences=None, real=1, most=16)
    for axis, name in ((1, "width"), (2, "scored")):
        rounded = {max(NARROWEST, -(-int(need) // MULTIPLE) * MULTIPLE) for need in needs[:, axis]}
        assert {getattr(shape, name) for shape in table.shapes} <= rounded


@pytest.mark.parametrize("sequences", SEQUENCES)
def test_as_many_shapes_as_needs_pad_to_the_multiple_only(sequences: int | None) -> None:
    needs = np.array([(1, 150, 90), (1, 144, 88), (4, 20, 64)])
    table = plan_shapes(needs, sequences=sequences, real=real(needs, sequences), most=3)
    assert set(table.shapes) == {Shape(1, 152, 96), Shape(1, 144, 88), Shape(4, 24, 64)}
    assert table.padding == table.least_padding


def test_the_two_that_add_the_least_share_a_shape() -> None:
    needs = np.array([(1, 32, 16), (1, 40, 16), (1, 416, 16)])
    assert plan_shapes(needs, sequences=None, real=1, most=2).shapes == (Shape(1, 40, 16), Shape(1, 416, 16))


def test_rows_of_spread_lengths_are_padded_by_less_than_a_tenth_two_at_once() -> None:
    """Prompts and responses vary apart, with long tails; 16 rows a step are dealt to 8 lines."""
    rng = np.random.default_rng(0)
    context = np.minimum(np.exp(rng.normal(4.6, 1.0, (125, 16))) + 20, 512).astype(int)
    scored = np.minimum(2 * np.exp(rng.normal(5.3, 0.8, (125, 16))), 1024).astype(int)
    needs = []
    for contexts, responses in zip(context, scored, strict=True):
        order = np.argsort(-(contexts + 2 * responses))
        for line in range(8):
            rows = order[dealt(16, 2) == line]
            needs.append((len(rows), (contexts + responses)[rows].sum(), responses[rows].sum()))
    table = plan_shapes(np.array(needs), sequences=None, real=real(np.array(needs), None), most=15)
    assert table.padding < 0.1
    assert table.least_padding < 0.02


def test_more_numbers_of_rows_than_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="at most 2 different"):
        plan_shapes(np.array([(n, 8, 8) for n in (1, 2, 3)]), sequences=None, real=1, most=2)


def test_a_micro_batch_that_was_not_planned_may_fit_nothing() -> None:
    table = plan_shapes(np.array([(1, 150, 90)]), sequences=None, real=1, most=16)
    assert table.of(Shape(1, 200, 90)) is None
    assert table.of(Shape(1, 100, 97)) is None
    assert table.of(Shape(2, 75, 40)) is None
