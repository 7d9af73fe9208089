"""Work side by side on streams of the CPU."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from localdpo.model.lanes import MOST_LANES, side_by_side


@pytest.mark.parametrize("lanes", range(1, MOST_LANES + 1))
def test_what_is_computed_side_by_side_is_in_order_and_the_same_to_the_bit(lanes: int) -> None:
    """Runs that are resumed, and reference scores that are kept, may come with others beside them."""
    weights = mx.random.normal((256, 300))
    inputs = [mx.random.normal((16 * n + 1, 256)) for n in range(7)]

    def build(x: mx.array) -> dict[str, mx.array]:
        return {"y": mx.softmax(x @ weights, axis=-1) @ weights.T}

    found = [np.array(built["y"]) for built in side_by_side(build, iter(inputs), lanes)]
    for mine, x in zip(found, inputs, strict=True):
        np.testing.assert_array_equal(mine, build(x)["y"])


def test_an_error_in_one_of_several_reaches_the_caller() -> None:
    def build(size: int) -> mx.array:
        return mx.ones((2, size)) @ mx.ones((3, 2))

    with pytest.raises(ValueError, match="matmul"):
        list(side_by_side(build, [3, 4], 2))
