"""What is held out of the training data: by prompt, by the seed, and never everything."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from localdpo.data.encode import prompt_key
from localdpo.train.data import Rows, hold_out

pytestmark = pytest.mark.slow


class Store(list[Any]):
    """A stand-in for a mixture: rows that are only prompts, with the keys of the whole prompts."""

    def __init__(self, prompts: list[int], keys: list[int] | None = None) -> None:
        super().__init__(SimpleNamespace(prompt=np.array([p], dtype=np.int32)) for p in prompts)
        whole = [prompt_key(row.prompt) for row in self] if keys is None else keys
        self.prompt_keys = np.array(whole, dtype=np.int64)

    def prompts(self) -> list[Any]:
        return [row.prompt for row in self]


def store_of(prompts: list[int], keys: list[int] | None = None) -> Any:
    """A store whose row i has the one-token prompt `prompts[i]`."""
    return Store(prompts, keys)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=60), st.floats(0.01, 0.5), st.integers(0, 5))
def test_no_prompt_is_on_both_sides(prompts: list[int], fraction: float, seed: int) -> None:
    train, held = hold_out(store_of(prompts), fraction, seed, 0)
    assert sorted([*train.indices, *held.indices]) == list(range(len(prompts)))
    assert not {prompts[i] for i in train.indices} & {prompts[i] for i in held.indices}
    assert len(train) >= 1
    assert len(held) >= 1 or len(set(prompts)) == 1


def test_distinct_prompts_hold_out_about_the_fraction_and_depend_on_the_seed() -> None:
    store = store_of(list(range(4000)))
    train, held = hold_out(store, 0.05, 0, 0)
    assert len(train) + len(held) == 4000
    # Four standard deviations of a binomial.
    assert abs(len(held) - 200) < 4 * (4000 * 0.05 * 0.95) ** 0.5
    np.testing.assert_array_equal(held.indices, hold_out(store, 0.05, 0, 0)[1].indices)
    assert set(held.indices) != set(hold_out(store, 0.05, 1, 0)[1].indices)
    assert set(held.indices) < set(hold_out(store, 0.1, 0, 0)[1].indices)


def test_which_prompts_are_held_out_is_the_same_everywhere() -> None:
    """Pinned: another machine or version holds out the same rows, so that a resumed run does."""
    assert hold_out(store_of(list(range(60))), 0.1, 0, 0)[1].indices.tolist() == [1, 7, 14, 37, 38, 46, 48]


PROMPTS = st.tuples(st.integers(0, 400), st.integers(0, 400))


@given(st.lists(PROMPTS, min_size=1, max_size=60), st.lists(PROMPTS, max_size=60), st.integers(0, 3))
def test_no_row_that_was_held_out_trains_when_rows_are_added(
    rows: list[tuple[int, int]], added: list[tuple[int, int]], seed: int
) -> None:
    """Also where the new rows show that two prompts are the same: before the cut, or after it."""
    # Enough prompts that both sides have some whatever is drawn.
    rows = [(1000 + n, 1000 + n) for n in range(60)] + rows
    more = rows + added
    _, held = hold_out(store_of([p for p, _ in rows], [k for _, k in rows]), 0.3, seed, 0)
    train, _ = hold_out(store_of([p for p, _ in more], [k for _, k in more]), 0.3, seed, 0)
    assert not set(held.indices) & set(train.indices)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=40), st.integers(0, 3)
)
def test_prompts_that_were_the_same_before_or_after_the_cut_stay_together(
    rows: list[tuple[int, int]], seed: int
) -> None:
    train, held = hold_out(store_of([p for p, _ in rows], [k for _, k in rows]), 0.3, seed, 0)
    assert sorted([*train.indices, *held.indices]) == list(range(len(rows)))
    for side in (0, 1):
        assert not {rows[i][side] for i in train.indices} & {rows[i][side] for i in held.indices}


def test_finer_keys_change_nothing() -> None:
    """In one data set prompts that were the same before the cut are so after it."""
    prompts = [n // 3 for n in range(90)]
    plain = hold_out(store_of(prompts), 0.2, 0, 0)
    finer = hold_out(store_of(prompts, list(range(90))), 0.2, 0, 0)
    for one, other in zip(plain, finer, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)


def test_rows_that_are_measured_together_are_no_more_than_go_through_a_model_together():
    """A long pass holds up the display; short rows still go together."""
    lengths = np.array([3000, 10, 1500, 1200, 900, 20, 30, 5000])
    store: Any = SimpleNamespace(prompt_lengths=lengths - 2, response_lengths=np.ones((8, 2), dtype=np.int64))
    parts = [part.tolist() for part in Rows(store, np.arange(8), 0).parts_by_length(np.arange(8), 4)]
    assert parts == [[7], [0], [2], [3], [4, 6, 5, 1]]
