"""TR-DPO: where the reference goes, that its scores are live, and that a resumed run goes on exactly."""

from __future__ import annotations

import math
import os
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from tiny_folders import recipe_text, write_pairs
from training_runs import EAGER, Run, assert_same_arrays, files_of, metrics_of, session_of, train, weights_of

from localdpo.evals.inspect_pairs import inspect_run
from localdpo.model import lora
from localdpo.records.rundir import RunDir
from localdpo.train.checkpoint import REFERENCE_FILE

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", 12)


def text(model: Path, pairs: Path, adapter: Path, steps: int, **loss: object) -> str:
    return recipe_text(
        model,
        pairs,
        pairs,
        adapter=str(adapter),
        loss=loss,
        train={"max_steps": steps, "epochs": 9},
        lora={"dropout": 0.2},
        eval={"every": 1, "pairs": 12, "kl_pairs": 0},
        save={"every": 1, "keep": 99},
    )


def reference_at(run: Run, step: int) -> dict[str, np.ndarray]:
    arrays = mx.load(str(run.run.checkpoint_path(step) / REFERENCE_FILE))
    return {name: np.array(value) for name, value in arrays.items()}


def policy_at(run: Run, step: int) -> dict[str, np.ndarray]:
    arrays = mx.load(str(run.run.checkpoint_path(step) / lora.WEIGHTS_FILE))
    return {name: np.array(value) for name, value in arrays.items()}


def test_the_reference_moves_every_so_many_steps_by_alpha(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path, own_cache: Path
) -> None:
    run = train(tmp_path / "run", text(tiny_model, pairs, sft_adapter, 4, sync_every=2, sync_alpha=0.3))
    start = {name: np.array(value) for name, value in tree_flatten(run.session.reference)}
    assert_same_arrays(reference_at(run, 1), start)
    before = start
    for step in (2, 4):
        policy, found = policy_at(run, step), reference_at(run, step)
        assert found.keys() == policy.keys()
        for name, value in found.items():
            np.testing.assert_allclose(value, 0.3 * policy[name] + 0.7 * before[name], rtol=1e-5, atol=1e-7)
        assert max(np.abs(policy[name] - before[name]).max() for name in policy) > 1e-4
        before = found
    assert_same_arrays(reference_at(run, 3), reference_at(run, 2))
    # Nothing was scored ahead: such scores would be those of a reference that is gone.
    assert not (own_cache / "reference").exists()
    assert not [event for event in run.events if event.type == "reference"]


def test_a_hard_update_makes_the_policy_the_reference(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    run = train(tmp_path / "run", text(tiny_model, pairs, sft_adapter, 2, sync_every=2, sync_alpha=1.0))
    start, moved, synced = run.metrics("eval")
    assert start["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(moved["rewards/margins"]) > 1e-3
    assert synced["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert synced["rewards/margins"] == 0.0


def test_until_the_first_sync_live_scores_train_as_cached_ones_do(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    """With LD-DPO, whose reference has two scores a response."""
    found = []
    for name, loss in (("live", {"sync_every": 99}), ("cached", {})):
        recipe = text(tiny_model, pairs, sft_adapter, 3, ld_alpha=0.5, **loss)
        run = train(tmp_path / name, recipe)
        found.append([metrics["loss"] for kind in ("step", "eval") for metrics in run.metrics(kind)])
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.long
def test_a_resumed_run_goes_on_with_the_moved_reference(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    recipe = text(tiny_model, pairs, sft_adapter, 4, sync_every=1, sync_alpha=0.5)
    whole = train(tmp_path / "whole", recipe, backend=EAGER)
    resumed = RunDir(tmp_path / "resumed")
    resumed.checkpoints.mkdir(parents=True)
    (resumed.path / "events.jsonl").write_bytes(whole.run.events.read_bytes())
    expected = {
        step: (reference_at(whole, step), files_of(whole.run.checkpoint_path(step))) for step in (3, 4)
    }
    os.rename(whole.run.checkpoint_path(2), resumed.checkpoint_path(2))
    again = train(resumed.path, recipe, backend=EAGER)
    for step, (reference, files) in expected.items():
        assert_same_arrays(files_of(resumed.checkpoint_path(step)), files)
        assert_same_arrays(reference_at(again, step), reference)
    assert metrics_of(resumed, "eval")[-1]["loss"] == whole.metrics("eval")[-1]["loss"]


def test_the_token_view_of_a_run_compares_with_the_moved_reference(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    recipe = text(tiny_model, pairs, sft_adapter, 3, sync_every=2, sync_alpha=0.5)
    run = train(tmp_path / "run", recipe)
    found = inspect_run(run.run.path, note=lambda note: None)
    assert found.margin == pytest.approx(run.metrics("eval")[-1]["rewards/margins"], rel=1e-3, abs=1e-5)
    session = session_of(tmp_path / "other", recipe)
    assert max(np.abs(v - weights_of(session)[n]).max() for n, v in reference_at(run, 3).items()) > 1e-5
