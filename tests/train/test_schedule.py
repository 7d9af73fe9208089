"""Steps, epochs and learning rates: arithmetic on the recipe."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from localdpo.recipe.schema import TrainSection
from localdpo.train.step import Schedule, length_note, make_schedule


def plan(rows: int, **options: Any) -> Schedule:
    return make_schedule(TrainSection(learning_rate=1.0, **options), rows)


def rates(made: Schedule) -> list[float]:
    return [made.learning_rate(step) for step in range(made.total)]


@pytest.mark.parametrize(
    ("rows", "batch", "epochs", "limit", "total", "per_epoch"),
    [
        (100, 8, 1, None, 13, 13),  # a ragged last batch counts
        (96, 8, 3, None, 36, 12),
        (3, 8, 5, None, 5, 1),  # fewer rows than a batch
        (100, 8, 1, 4, 4, 13),
        (100, 8, 1, 1000, 13, 13),  # of both, what ends first
        (100, 8, None, 1000, 1000, 13),  # max_steps alone decides
        (100, 8, None, None, 13, 13),
    ],
)
def test_steps_follow_from_rows_epochs_and_limit(
    rows: int, batch: int, epochs: int | None, limit: int | None, total: int, per_epoch: int
) -> None:
    made = plan(rows, batch_size=batch, epochs=epochs, max_steps=limit)
    assert (made.total, made.per_epoch, made.rows) == (total, per_epoch, rows)
    assert made.epoch(made.total) == pytest.approx(total / per_epoch)


@pytest.mark.parametrize(
    ("epochs", "limit", "note"),
    [
        (2, 5, "train.max_steps=5 ends the run before train.epochs=2 (26 steps) would"),
        (1, 1000, "train.epochs=1 (13 steps) ends the run before train.max_steps=1000 would"),
        (2, 26, None),
        (None, 1000, None),
        (2, None, None),
    ],
)
def test_what_ends_the_run_is_said_where_a_recipe_gives_both(
    epochs: int | None, limit: int | None, note: str | None
) -> None:
    train = TrainSection(batch_size=8, epochs=epochs, max_steps=limit)
    assert length_note(train, make_schedule(train, 100)) == note


def test_a_share_and_a_number_of_warm_up_steps() -> None:
    assert plan(800, batch_size=8, warmup=0.1).warmup == 10
    assert plan(800, batch_size=8, warmup=25).warmup == 25
    assert plan(800, batch_size=8, warmup=0).warmup == 0


def test_warm_up_rises_evenly_from_above_zero_to_the_peak() -> None:
    found = rates(plan(80, batch_size=8, warmup=4, schedule="constant"))
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_warm_up_longer_than_the_run_still_reaches_the_peak(schedule: str) -> None:
    found = rates(plan(40, batch_size=8, warmup=150, schedule=schedule))
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_a_run_of_one_step_takes_it_at_the_peak(schedule: str) -> None:
    assert rates(plan(8, batch_size=8, warmup=10, schedule=schedule)) == [1.0]


def test_the_ends_of_the_decays() -> None:
    linear = rates(plan(80, batch_size=8, warmup=0, schedule="linear"))
    assert linear == pytest.approx([1.0 - k / 10 for k in range(10)])
    cosine = rates(plan(80, batch_size=8, warmup=0, schedule="cosine"))
    assert cosine[0] == 1.0
    assert cosine[5] == pytest.approx(0.5)
    # The last step is half a step's worth above the end of the cosine; no step is taken at 0.
    assert 0 < cosine[-1] < 0.03
    assert all(a > b for a, b in itertools.pairwise(cosine))
