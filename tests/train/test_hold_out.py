"""What is held out of the training data: by prompt, by the seed, and never everything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from localdpo.train.rows import hold_out


def store_of(prompts: list[int]) -> Any:
    """A stand-in for a token store whose row i has the one-token prompt `prompts[i]`."""
    return [SimpleNamespace(prompt=np.array([p], dtype=np.int32)) for p in prompts]


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.floats(0.01, 0.5), st.integers(0, 5))
def test_no_prompt_is_on_both_sides(prompts: list[int], fraction: float, seed: int) -> None:
    train, held = hold_out(store_of(prompts), fraction, seed, 0)
    assert sorted([*train.indices, *held.indices]) == list(range(len(prompts)))
    assert not {prompts[i] for i in train.indices} & {prompts[i] for i in held.indices}
    assert len(train) >= 1
    assert len(held) >= 1 or len(set(prompts)) == 1


def test_distinct_prompts_hold_out_the_fraction_and_depend_on_the_seed() -> None:
    store = store_of(list(range(1000)))
    train, held = hold_out(store, 0.05, 0, 0)
    assert (len(train), len(held)) == (950, 50)
    np.testing.assert_array_equal(held.indices, hold_out(store, 0.05, 0, 0)[1].indices)
    assert set(held.indices) != set(hold_out(store, 0.05, 1, 0)[1].indices)
