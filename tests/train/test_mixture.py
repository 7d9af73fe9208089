"""Training on several data sets at once: what a step draws, what is scored, held out, named and resumed."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import mlx.optimizers as optim
import numpy as np
import pytest
import yaml
from rich.console import Console
from tiny_folders import pair, recipe_text, write_pairs, write_rows
from training_runs import (
    EAGER,
    assert_same_arrays,
    files_of,
    session_of,
    step_of,
    train,
    weights_of,
    write_recipe,
)

from localdpo.core.errors import UserError
from localdpo.evals.inspect_pairs import inspect_run
from localdpo.model import lora
from localdpo.recipe.load import load_recipe
from localdpo.records.rundir import RunDir
from localdpo.train import unpaired
from localdpo.train.assemble import Session, assemble
from localdpo.train.dry_run import dry_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]
RATE = 2.0**20
LONG = "and then some more of it " * 4


@pytest.fixture
def one(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "one.jsonl", 10)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "two.jsonl", 8, start=40)


def text(model: Path, train_on: list[Any], valid: Any = None, **sections: Any) -> str:
    """A recipe that trains on a list of data sets."""
    content = yaml.safe_load(recipe_text(model, Path("unused"), **sections))
    content["data"]["train"] = [str(e) if isinstance(e, Path) else e for e in train_on]
    if valid is not None:
        content["data"]["valid"] = valid
    return yaml.safe_dump(content, sort_keys=False)


def entry(source: Path, **options: Any) -> dict[str, Any]:
    return {"source": str(source), **options}


def scored(session: Session) -> list[int]:
    """Score the training rows; how many rows each reported batch brought it to."""
    assert session.train_scores is not None
    seen: list[int] = []

    def asked(done: int, total: int) -> bool:
        seen.append(done)
        return True

    with lora.use(session.base.model, session.reference):
        session.train_scores.fill(session.forward, asked)
    return seen


def test_a_step_is_a_function_of_seed_and_step_and_follows_the_weights(
    tmp_path: Path, one: Path, two: Path, tiny_model: Path
) -> None:
    content = text(
        tiny_model,
        [entry(one, weight=2), entry(two, weight=0.5)],
        str(write_pairs(tmp_path / "valid.jsonl", 3, start=90)),
        train={"epochs": 2, "batch_size": 5, "micro_batch_size": 2},
    )
    session, again = (session_of(tmp_path, content) for _ in range(2))
    assert (session.schedule.rows, session.schedule.per_epoch, session.schedule.total) == (24, 5, 10)
    drawn = [np.concatenate([b.indices for b in session.feed.batches(step)]) for step in range(10)]
    for step in (7, 2, 0):
        other = np.concatenate([b.indices for b in again.feed.batches(step)])
        np.testing.assert_array_equal(other, drawn[step])
    for epoch in (0, 1):
        times = np.bincount(np.concatenate(drawn[5 * epoch : 5 * epoch + 5]), minlength=18)
        assert times[:10].tolist() == [2] * 10
        assert sorted(times[10:]) == [0] * 4 + [1] * 4
    # The second epoch takes the other half.
    assert np.bincount(np.concatenate(drawn), minlength=18)[10:].tolist() == [1] * 8


def test_rows_and_names_are_those_of_their_data_set(
    tmp_path: Path, one: Path, two: Path, tiny_model: Path
) -> None:
    store = session_of(tmp_path, text(tiny_model, [one, two], str(two))).train.store
    assert [store[i].row for i in (0, 9, 10, 17)] == [0, 9, 0, 7]
    assert [store.source_of(i) for i in (9, 10)] == [str(one), str(two)]
    assert store.name_rows(np.array([11, 2, 10, 2])) == f"rows 3 of {one} and 1, 2 of {two}"
    assert store.source == f"{one}, {two}"
    assert [row.row for row in store[8:11]] == [8, 9, 0]


def test_each_data_set_has_its_own_limits_and_cache(
    tmp_path: Path, tiny_model: Path, own_cache: Path
) -> None:
    rows = [{**pair(n), "prompt": f"{LONG}{pair(n)['prompt']}"} for n in range(6)]
    long = write_rows(tmp_path / "long.jsonl", rows)
    other = write_rows(tmp_path / "other.jsonl", [{**row, "chosen": "Good."} for row in rows])
    cut = entry(other, max_prompt_length=24, truncation="keep_end", limit=4)
    first = session_of(tmp_path, text(tiny_model, [long, cut], str(long)))
    lengths = first.train.store.prompt_lengths
    assert (lengths[:6] > 24).all()
    assert lengths[6:].tolist() == [24] * 4
    files = sorted((own_cache / "tokens").glob("*.arrow"))
    assert len(files) == 2
    changed = {file: file.stat().st_mtime_ns for file in files}
    session_of(tmp_path, text(tiny_model, [{**cut, "weight": 3}, long]))
    session_of(tmp_path, recipe_text(tiny_model, long))
    assert {file: file.stat().st_mtime_ns for file in (own_cache / "tokens").glob("*.arrow")} == changed


def test_scores_of_a_mixture_are_right_and_found_again_whatever_the_loss(
    tmp_path: Path, one: Path, two: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    valid = str(write_pairs(tmp_path / "valid.jsonl", 3, start=90))

    def mixed(train_on: list[Any], **sections: Any) -> Session:
        return session_of(tmp_path, text(tiny_model, train_on, valid, adapter=str(sft_adapter), **sections))

    assert scored(mixed([one, entry(two, weight=2)]))[-1] == 18
    again = mixed([one, entry(two, weight=2)], loss={"beta": 0.5}, train={"learning_rate": 1e-2, "seed": 3})
    assert scored(again) == []
    for batch in again.feed.batches(0) + again.feed.batches(1):
        assert again.train_scores is not None
        live = np.array(again.forward.score(batch))
        np.testing.assert_allclose(again.train_scores.of(batch.indices), live, atol=1e-3, rtol=2e-6)
    # Other batches, other bits: another order of the data sets does not take these scores.
    assert scored(mixed([two, one]))[-1] == 18


def test_a_prompt_of_two_data_sets_is_on_one_side_whatever_is_cut_off(
    tmp_path: Path, tiny_model: Path
) -> None:
    rows = [{**pair(n), "prompt": f"{pair(n)['prompt']} {LONG}"} for n in range(20)]
    one = write_rows(tmp_path / "one.jsonl", rows)
    two = write_rows(tmp_path / "two.jsonl", [{**row, "chosen": "Good."} for row in rows])
    cut = entry(two, max_prompt_length=30, truncation="keep_start")
    session = session_of(tmp_path, text(tiny_model, [one, cut], data={"valid_fraction": 0.3}))
    sides = [
        {(int(rows.store.part_of(i)), rows.store[int(i)].row) for i in rows.indices}
        for rows in (session.train, session.valid)
    ]
    assert all(sides)
    assert len(sides[0] | sides[1]) == 40
    for found in sides:
        assert {row for part, row in found if part == 0} == {row for part, row in found if part == 1}


def test_the_same_rows_twice_are_refused(tmp_path: Path, one: Path, tiny_model: Path) -> None:
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(one.read_bytes())
    with pytest.raises(UserError, match=r"data\.train: .*copy\.jsonl has the same rows as .*one\.jsonl"):
        session_of(tmp_path, text(tiny_model, [one, copy]))


def test_micro_batches_of_a_mixture_add_up_to_the_batch(
    tmp_path: Path, one: Path, two: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    found = []
    for micro in (8, 3):
        options = {"batch_size": 8, "micro_batch_size": micro}
        content = text(
            tiny_model, [entry(one, weight=2), two], str(two), adapter=str(sft_adapter), train=options
        )
        session = session_of(tmp_path, content)
        scored(session)
        # So large a rate that the difference of two weights is known as well as the gradient itself.
        before, step = weights_of(session), step_of(session, optim.SGD(RATE))
        result = step(session.feed.arrays(session.feed.batches(0)), RATE)
        after = weights_of(session)
        moved = {name: (before[name] - after[name]) / RATE for name in before}
        found.append((result.loss, moved))
    (whole, expected), (cut, gradients) = found
    assert cut == pytest.approx(whole, rel=1e-5)
    largest = max(float(np.linalg.norm(g)) for g in expected.values())
    assert largest > 0
    for name, gradient in expected.items():
        assert np.linalg.norm(gradients[name] - gradient) < 1e-5 * largest


def test_a_run_learns_is_resumed_exactly_and_names_its_rows(
    tmp_path: Path, one: Path, two: Path, tiny_model: Path
) -> None:
    content = text(
        tiny_model,
        [entry(one, weight=1.5), entry(two, weight=0.5)],
        [
            str(write_pairs(tmp_path / "a.jsonl", 4, start=90)),
            str(write_pairs(tmp_path / "b.jsonl", 4, start=70)),
        ],
        train={"epochs": 3, "learning_rate": 0.01},
        save={"every": 7, "keep": 9},
        eval={"worst_pairs": 8},
    )
    whole = train(tmp_path / "whole", content)
    assert whole.outcome.metrics["rewards/accuracies"] == 1.0
    assert whole.session.schedule.total == 15
    resumed = RunDir(tmp_path / "resumed")
    resumed.checkpoints.mkdir(parents=True)
    for name in ("recipe.yaml", "events.jsonl"):
        (resumed.path / name).write_bytes((whole.run.path / name).read_bytes())
    os.rename(whole.run.checkpoint_path(7), resumed.checkpoint_path(7))
    train(resumed.path, content)
    for step in (14, 15):
        assert_same_arrays(files_of(resumed.checkpoint_path(step)), files_of(whole.run.checkpoint_path(step)))
    worst = json.loads((whole.run.path / "pairs/step-000015.json").read_text())["pairs"]
    assert {(Path(p["source"]).name, p["row"]) for p in worst} == {
        (f, n) for f in ("a.jsonl", "b.jsonl") for n in (1, 2, 3, 4)
    }

    def inspect(**options: Any) -> Any:
        return inspect_run(whole.run.path, note=lambda line: None, **options)

    found = inspect()
    assert {(pair.source, pair.row) for pair in found.pairs} == {(p["source"], p["row"]) for p in worst}
    with pytest.raises(
        UserError, match=r"--pair 2: .*a\.jsonl and .*b\.jsonl have such a row; give --source"
    ):
        inspect(pair=2)
    b = str(tmp_path / "b.jsonl")
    alone = inspect(pair=2, source=b)
    assert [(pair.source, pair.row) for pair in alone.pairs] == [(b, 2)]
    assert "question number 71" in alone.pairs[0].prompt
    assert (inspect(source=b).rows, inspect(source=b).source) == (4, b)
    with pytest.raises(UserError, match=r"--source c\.jsonl: the valid pairs are of"):
        inspect(source="c.jsonl")
    with pytest.raises(UserError, match=r"--pair 9: expected a row from 1 to 4"):
        inspect(pair=9, source=b)


def test_unpaired_rows_are_mixed_and_balanced_by_weight(tmp_path: Path, tiny_model: Path) -> None:
    def rated(numbers: range, label: bool) -> list[dict[str, Any]]:
        side = "chosen" if label else "rejected"
        return [{"prompt": pair(n)["prompt"], "completion": pair(n)[side], "label": label} for n in numbers]

    good = write_rows(tmp_path / "good.jsonl", rated(range(6), True))
    bad = write_rows(tmp_path / "bad.jsonl", rated(range(20, 32), False))
    valid = str(
        write_rows(tmp_path / "valid.jsonl", rated(range(50, 53), True) + rated(range(60, 63), False))
    )
    sections = {"loss": {"type": "kto"}, "train": {"max_steps": 2}}
    entries = [entry(good), entry(bad, weight=0.5)]
    run = train(tmp_path / "run", text(tiny_model, entries, valid, **sections))
    assert run.session.train.store.desirable is not None
    assert run.session.train.store.desirable.tolist() == [True] * 6 + [False] * 12
    assert run.outcome.metrics["loss"] > 0
    session = run.session
    assert unpaired.notes(session.recipe.loss, session.train, session.valid) == []
    even = session_of(tmp_path, text(tiny_model, [good, bad], valid, **sections))
    (line,) = unpaired.notes(even.recipe.loss, even.train, even.valid)
    assert line.startswith("6 desirable rows weigh 0.50 times as much as 12 undesirable ones")


def test_a_dry_run_and_the_notes_name_the_data_sets(tmp_path: Path, two: Path, tiny_model: Path) -> None:
    same = {**pair(3), "rejected": pair(3)["chosen"]}
    one = write_rows(tmp_path / "one.jsonl", [*(pair(n) for n in range(10)), same])
    content = text(tiny_model, [one, entry(two, weight=0.25)], [str(two)])
    stream = io.StringIO()
    dry_run(load_recipe(write_recipe(tmp_path, content)), Console(file=stream, width=300))
    shown = stream.getvalue()
    assert f"train {one}: 11 rows read, 0 truncated" in shown
    assert f"train {two}: 8 rows read" in shown
    assert "valid: 8 rows read" in shown
    assert f"an epoch takes 10 rows (83%) of {one}: 10 to train on, weight 1" in shown
    assert f"an epoch takes 2 rows (17%) of {two}: 8 to train on, weight 0.25" in shown
    assert "3 steps of 4 rows" in shown
    assert f"row 1 of {one} ──" in shown
    assert f"row 1 of {two} ──" in shown
    assert "question number 40" in shown
    notes: list[str] = []
    assemble(load_recipe(write_recipe(tmp_path, content)), EAGER, notes.append)
    (line,) = [note for note in notes if note.startswith("data.")]
    assert line.startswith(f"data.train {one}: dropped 1 of 11 rows: ")
    assert line.endswith("(1 row: 11)")


def test_a_loss_that_is_not_finite_names_the_rows_of_every_data_set(
    tmp_path: Path, one: Path, two: Path, tiny_model: Path
) -> None:
    options = {
        "optimizer": "sgd",
        "learning_rate": 1e30,
        "batch_size": 18,
        "max_grad_norm": 1e30,
        "epochs": 9,
    }
    with pytest.raises(UserError, match="is not finite") as caught:
        train(tmp_path / "run", text(tiny_model, [one, two], str(two), train=options))
    assert f"of {one} and 1, 2, 3, 4, 5, 6, 7, 8 of {two})" in str(caught.value)
