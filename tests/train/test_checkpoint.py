"""Checkpoints: what is saved comes back, damage is found, and mlx-lm reads the adapter."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.optimizers as optim
import numpy as np
import pytest
from mlx.utils import tree_flatten
from mlx_lm import load as mlx_lm_load
from tiny_folders import recipe_text, write_pairs
from training_runs import assert_same_arrays, files_of, session_of, step_of, train, weights_of

from localdpo.core.errors import UserError
from localdpo.model.arrays import random_key, set_random_key
from localdpo.model.backend import prepare
from localdpo.model.lora import CONFIG_FILE, WEIGHTS_FILE
from localdpo.records.checkpoints import checkpoint_folders, newest_checkpoint
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir
from localdpo.train import checkpoint
from localdpo.train.assemble import Session
from localdpo.train.checkpoint import TrainState
from localdpo.train.control import StopRequest
from localdpo.train.loop import Loop
from localdpo.train.step import make_optimizer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", 12)


@pytest.fixture
def session(tmp_path: Path, pairs: Path, tiny_model: Path) -> Session:
    """A session whose loss needs no reference, so that steps can be taken at once."""
    return session_of(tmp_path / "run", recipe_text(tiny_model, pairs, loss={"type": "orpo", "beta": 0.1}))


def stepped(session: Session, optimizer: optim.Optimizer, steps: range) -> None:
    step = step_of(session, optimizer)
    for number in steps:
        step(session.feed.arrays(session.feed.batches(number)), 1e-3)


def save(session: Session, run: RunDir, optimizer: optim.Optimizer, step: int, keep: int = 9) -> Path:
    state = TrainState(step, random_key(), 1.5 * step, {"loss": 0.5})
    return checkpoint.save(run, session.base.model, optimizer, state, session.adapter_json(), keep)


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "rmsprop", "lion"])
@pytest.mark.parametrize("layers", [-1, 1])
@pytest.mark.every(3)
def test_what_is_saved_comes_back(
    name: str, layers: int, tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    options: dict[str, Any] = {"train": {"optimizer": name}, "lora": {"layers": layers}}
    text = recipe_text(tiny_model, pairs, loss={"type": "orpo", "beta": 0.1}, **options)
    first, run = session_of(tmp_path / "run", text), RunDir(tmp_path / "run")
    optimizer = make_optimizer(first.recipe.train)
    stepped(first, optimizer, range(2))
    set_random_key((7, 2**32 - 1))
    saved = save(first, run, optimizer, 2)
    stepped(first, optimizer, range(2, 4))

    second = session_of(tmp_path / "run", text)
    fresh = make_optimizer(second.recipe.train)
    found, problems = checkpoint.newest_valid(run)
    assert found is not None
    assert (found.path, problems) == (saved, [])
    assert found.state == TrainState(2, (7, 2**32 - 1), 3.0, {"loss": 0.5})
    checkpoint.restore(found, second.base.model, fresh)
    assert random_key() == (7, 2**32 - 1)
    stepped(second, fresh, range(2, 4))
    assert_same_arrays(weights_of(second), weights_of(first))
    state = {key: np.array(value) for key, value in tree_flatten(optimizer.state)}
    assert_same_arrays({key: np.array(value) for key, value in tree_flatten(fresh.state)}, state)
    assert int(state["step"]) == 4


def test_a_checkpoint_has_its_files_and_latest_points_at_it(session: Session, tmp_path: Path) -> None:
    run, optimizer = RunDir(tmp_path / "run"), optim.Adam(1e-3)
    step_of(session, optimizer)
    for step in (1, 2, 3):
        save(session, run, optimizer, step, keep=2)
        assert os.readlink(run.latest) == f"step-{step:06d}"
    assert [path.name for path in checkpoint_folders(run.checkpoints)] == ["step-000002", "step-000003"]
    assert sorted(os.listdir(run.latest)) == [
        CONFIG_FILE,
        WEIGHTS_FILE,
        "manifest.json",
        "optimizer.safetensors",
        "state.json",
    ]
    assert sorted(os.listdir(run.checkpoints)) == ["LATEST", "step-000002", "step-000003"]


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in (999_999, 1_000_000, 5):
        run.checkpoint_path(step).mkdir(parents=True)
    assert [p.name for p in checkpoint_folders(run.checkpoints)] == [
        "step-000005",
        "step-999999",
        "step-1000000",
    ]


def damage(path: Path, kind: str) -> None:
    content = bytearray(path.read_bytes())
    if kind == "cut":
        del content[-5:]
    elif kind == "flip":
        content[len(content) // 2] ^= 1
    elif kind == "gone":
        path.unlink()
        return
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("kind", ["cut", "flip", "gone"])
@pytest.mark.parametrize("file", [WEIGHTS_FILE, CONFIG_FILE, "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    kind: str, file: str, session: Session, tmp_path: Path
) -> None:
    run, optimizer = RunDir(tmp_path / "run"), optim.Adam(1e-3)
    step_of(session, optimizer)
    for step in (1, 2):
        save(session, run, optimizer, step)
    damage(run.checkpoint_path(2) / file, kind)
    found, problems = checkpoint.newest_valid(run)
    assert found is not None
    assert found.state.step == 1
    assert len(problems) == 1
    assert str(run.checkpoint_path(2) / file) in problems[0]


def test_a_manifest_that_is_cut_or_gone_is_found(session: Session, tmp_path: Path) -> None:
    run, optimizer = RunDir(tmp_path / "run"), optim.Adam(1e-3)
    step_of(session, optimizer)
    for step in (1, 2, 3):
        save(session, run, optimizer, step)
    damage(run.checkpoint_path(3) / "manifest.json", "cut")
    damage(run.checkpoint_path(2) / "manifest.json", "gone")
    found, problems = checkpoint.newest_valid(run)
    assert found is not None
    assert found.state.step == 1
    assert len(problems) == 2


def test_with_nothing_whole_left_every_problem_is_told(session: Session, tmp_path: Path) -> None:
    run, optimizer = RunDir(tmp_path / "run"), optim.Adam(1e-3)
    step_of(session, optimizer)
    assert checkpoint.newest_valid(run) == (None, [])
    save(session, run, optimizer, 1)
    damage(run.checkpoint_path(1) / WEIGHTS_FILE, "flip")
    with EventWriter(run.events) as log:
        loop = Loop(session, run, log, StopRequest())
    assert loop.step == 0
    text = run.events.read_text()
    assert "skipped a damaged checkpoint" in text
    assert WEIGHTS_FILE in text


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_later_checkpoint_never_costs_a_whole_one(
    keep: int, session: Session, tmp_path: Path
) -> None:
    """A run that fell back to step 1 and is stopped at step 2 keeps step 2, not the damaged step 3."""
    run, optimizer = RunDir(tmp_path / "run"), optim.Adam(1e-3)
    step_of(session, optimizer)
    save(session, run, optimizer, 1)
    damage(save(session, run, optimizer, 3) / WEIGHTS_FILE, "flip")
    save(session, run, optimizer, 2, keep=keep)
    found, problems = checkpoint.newest_valid(run)
    assert found is not None
    assert (found.state.step, problems) == (2, [])
    assert newest_checkpoint(run) == run.checkpoint_path(2)
    assert len(checkpoint_folders(run.checkpoints)) == keep


@pytest.mark.parametrize("call", ["mkdir", "write", "fsync", "rename", "symlink"])
def test_a_full_disk_while_saving_leaves_the_previous_checkpoint(
    call: str, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, optimizer = RunDir(tmp_path / "run"), optim.Adam(1e-3)
    step_of(session, optimizer)
    before = files_of(save(session, run, optimizer, 1, keep=1))
    stepped(session, optimizer, range(1))

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(UserError, match=r"no space left .* bytes needed, .* free"):
            save(session, run, optimizer, 2, keep=1)
    assert os.readlink(run.latest) == "step-000001"
    assert_same_arrays(files_of(run.latest), before)
    found, problems = checkpoint.newest_valid(run)
    assert found is not None
    # Where only LATEST could not be moved, step 2 is whole already.
    assert (found.state.step, problems) == (2 if call == "symlink" else 1, [])


def test_mlx_running_out_of_space_leaves_the_previous_checkpoint(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, optimizer = RunDir(tmp_path / "run"), optim.Adam(1e-3)
    step_of(session, optimizer)
    save(session, run, optimizer, 1)
    usage = shutil.disk_usage(tmp_path)

    def full(*args: object) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
        raise RuntimeError("[write] Unable to write 4096 bytes to file.")

    monkeypatch.setattr(mx, "save_safetensors", full)
    with pytest.raises(UserError, match="no space left"):
        save(session, run, optimizer, 2)
    assert sorted(os.listdir(run.checkpoints)) == ["LATEST", "step-000001"]
    assert checkpoint.newest_valid(run)[1] == []


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("base", ["tiny_model", "quantised_model"])
@pytest.mark.every(3)
def test_mlx_lm_loads_the_adapter_and_computes_the_same(
    kind: str, base: str, tmp_path: Path, pairs: Path, request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(base)
    shape = {"type": kind, "layers": 1, "keys": ["self_attn.q_proj", "mlp.up_proj"]}
    run = train(
        tmp_path / "run",
        recipe_text(model, pairs, lora=shape, train={"max_steps": 2, "learning_rate": 0.05}),
    )
    adapter = run.run.latest
    theirs, tokenizer, *_ = mlx_lm_load(str(model), adapter_path=str(adapter))
    ids = mx.array([tokenizer.encode("What is the answer to question 3?")])
    base_logits = np.array(mlx_lm_load(str(model))[0](ids).astype(mx.float32))
    logits = np.array(theirs(ids).astype(mx.float32))
    ours = np.array(run.session.base.model(ids))
    assert np.abs(ours - base_logits).max() > 0.05
    np.testing.assert_allclose(logits, ours, atol=1e-4 if base == "tiny_model" else 5e-3)
    config = json.loads((adapter / CONFIG_FILE).read_text())
    assert config["fine_tune_type"] == kind
    assert config["num_layers"] == 1


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.long
def test_a_run_resumed_in_one_process_takes_the_same_steps(
    compiled: bool, tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    options = {"epochs": 2, "micro_batch_size": 3, "schedule": "linear", "warmup": 2, "compile": compiled}
    text = recipe_text(
        tiny_model,
        pairs,
        train=options,
        lora={"dropout": 0.2},
        save={"every": 2, "keep": 5},
        eval={"samples": 1, "max_tokens": 4, "temperature": 1.0, "every": 2, "kl_samples": 2},
    )
    backend = prepare()
    whole = train(tmp_path / "whole", text, backend=backend)
    assert whole.session.compiled == compiled
    if whole.session.feed.shapes is not None:
        assert 2 <= whole.loop.train_step.traces <= len(whole.session.feed.shapes.shapes) + 1
    assert [p.name for p in checkpoint_folders(whole.run.checkpoints)] == [f"step-{n:06d}" for n in (2, 4, 6)]
    resumed = RunDir(tmp_path / "resumed")
    for name in ("recipe.yaml", "events.jsonl"):
        (tmp_path / "resumed").mkdir(exist_ok=True)
        (resumed.path / name).write_bytes((whole.run.path / name).read_bytes())
    resumed.checkpoints.mkdir()
    os.rename(whole.run.checkpoint_path(2), resumed.checkpoint_path(2))
    train(resumed.path, text, backend=backend)
    for step in (4, 6):
        assert_same_arrays(files_of(resumed.checkpoint_path(step)), files_of(whole.run.checkpoint_path(step)))
