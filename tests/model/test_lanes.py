"""Work side by side on streams of the CPU."""

from __future__ import annotations

import mlx.core as mx
import pytest

from localdpo.model.lanes import MOST_LANES, side_by_side


@pytest.mark.parametrize("lanes", range(1, MOST_LANES + 1))
def test_what_is_computed_side_by_side_comes_evaluated_and_in_order(lanes: int) -> None:
    weights = mx.random.normal((32, 32))
    inputs = [mx.random.normal((n + 1, 32)) for n in range(7)]

    def build(x: mx.array) -> dict[str, mx.array]:
        return {"y": mx.softmax(x @ weights, axis=-1).sum()}

    found = [built["y"].item() for built in side_by_side(build, iter(inputs), lanes)]
    assert found == pytest.approx([build(x)["y"].item() for x in inputs], rel=1e-5)


def test_an_error_in_one_of_several_reaches_the_caller() -> None:
    def build(size: int) -> mx.array:
        return mx.ones((2, size)) @ mx.ones((3, 2))

    with pytest.raises(ValueError, match="matmul"):
        list(side_by_side(build, [3, 4], 2))
