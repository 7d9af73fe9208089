"""Assembling a run: adapters, rows, and the check of the two paths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import gemma3n, gpt2
from model_families import GEMMA3N, tiny
from tiny_folders import pair, recipe_text, write_pairs, write_rows
from training_runs import EAGER, session_of, train, write_recipe

from localdpo.core.errors import UserError
from localdpo.data.store import ENCODED_ROWS, Mixture
from localdpo.data.types import EncodedRow
from localdpo.model import lora
from localdpo.model.forward import Forward
from localdpo.recipe.load import load_recipe
from localdpo.train import data
from localdpo.train.assemble import assemble, attach_adapter, check_paths, tolerance
from localdpo.train.data import Rows, hold_out, visited

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", 20)


def test_the_adapter_is_the_start_adapters_shape_with_the_recipes_dropout(
    tmp_path: Path, pairs: Path, tiny_model: Path, sft_adapter: Path
) -> None:
    text = recipe_text(tiny_model, pairs, adapter=str(sft_adapter), lora={"dropout": 0.25})
    session = session_of(tmp_path, text)
    assert session.config == lora.LoraConfig("lora", -1, 4, 8.0, dropout=0.25)
    assert session.adapter_json() == session.config.to_json(str(tiny_model))


def test_defaults_of_a_fresh_adapter(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    text = recipe_text(tiny_model, pairs, lora={"rank": None, "scale": None})
    assert session_of(tmp_path, text).config == lora.LoraConfig("lora", -1, 8, 20.0)


def test_as_many_rows_are_scored_at_once_as_a_traced_line_holds(tmp_path: Path, tiny_model: Path) -> None:
    long = {**pair(0), "prompt": "What is question number 0? " * 9}
    pairs = write_rows(tmp_path / "pairs.jsonl", [long, *map(pair, range(1, 20))])
    options = {"batch_size": 19, "micro_batch_size": 1, "compile": True}
    text = recipe_text(tiny_model, pairs, pairs, train=options)
    session = session_of(tmp_path, text, backend=replace(EAGER, compiled=True))
    assert session.feed.shapes is not None
    assert session.feed.shapes.packing is not None
    assert session.scoring_batch == session.feed.shapes.packing.rows > session.layout.micro == 1


def test_a_model_whose_blocks_are_elsewhere_is_refused_in_one_line(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    """As mamba2, exaone and olmo are in mlx-lm."""
    recipe = load_recipe(write_recipe(tmp_path, recipe_text(tiny_model, pairs)))
    with pytest.raises(UserError, match=f"model {tiny_model}: models of the type base cannot be trained"):
        attach_adapter(nn.Module(), recipe)


def test_tokenising_is_told_now_and_then_and_only_when_it_happens(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(now=0.0)

    def passing() -> float:
        clock.now += 1.0
        return clock.now

    monkeypatch.setattr(data, "time", SimpleNamespace(monotonic=passing))
    pairs = write_pairs(tmp_path / "many.jsonl", 4 * ENCODED_ROWS)
    recipe = load_recipe(write_recipe(tmp_path, recipe_text(tiny_model, pairs)))
    told: list[tuple[str, int]] = []
    for _ in range(2):
        assemble(recipe, EAGER, lambda note: None, lambda source, rows: told.append((source, rows)))
    assert [source for source, _ in told] == [str(pairs)] * 2
    counts = [rows for _, rows in told]
    assert counts == sorted(set(counts))
    assert all(rows % ENCODED_ROWS == 0 for rows in counts)


def test_held_out_rows_are_never_trained_on(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    session = session_of(
        tmp_path, recipe_text(tiny_model, pairs, data={"valid_fraction": 0.25}, train={"epochs": 3})
    )
    held = {int(i) for i in session.valid.indices}
    trained = {
        int(i)
        for step in range(session.schedule.total)
        for batch in session.feed.batches(step)
        for i in batch.indices
    }
    assert held
    assert not held & trained
    assert held | trained == set(range(20))
    again, _ = hold_out(session.train.store, 0.25, 0, 0)
    np.testing.assert_array_equal(again.indices, session.train.indices)


def test_visited_rows_are_those_of_the_steps(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    session = session_of(tmp_path, recipe_text(tiny_model, pairs, pairs))
    for steps in (1, 3, 5, 9):
        drawn = [
            session.train.training_batch(k, batch_size=6, micro=6, seed=0, shared=True) for k in range(steps)
        ]
        rows = np.unique(np.concatenate([b.indices for batches in drawn for b in batches]))
        np.testing.assert_array_equal(visited(session.train, 6, 0, steps), rows)


def notes_of(forward: Forward, session: Any) -> list[str]:
    notes: list[str] = []
    check_paths(forward, session.train, notes.append)
    return notes


def test_the_shared_path_is_taken_where_it_is_right(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    session = session_of(tmp_path, recipe_text(tiny_model, pairs))
    assert session.forward.shared
    assert notes_of(session.forward, session) == []
    assert session.forward.shared


def test_a_shared_path_that_is_wrong_or_fails_is_left_and_that_is_said(
    tmp_path: Path, pairs: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = session_of(tmp_path, recipe_text(tiny_model, pairs))
    logps = Forward.logps

    def wrong(self: Forward, arrays: Any, *, gradient: bool) -> mx.array:
        return logps(self, arrays, gradient=gradient) + (0.1 if arrays.tokens_NL is None else 0.0)

    monkeypatch.setattr(Forward, "logps", wrong)
    forward = Forward(session.base.model)
    (note,) = notes_of(forward, session)
    assert "differs from the plain one by 0.1 nats" in note
    assert not forward.shared

    def failing(self: Forward, arrays: Any, *, gradient: bool) -> mx.array:
        if arrays.tokens_NL is None:
            raise ValueError("no such shape")
        return logps(self, arrays, gradient=gradient)

    monkeypatch.setattr(Forward, "logps", failing)
    forward = Forward(session.base.model)
    (note,) = notes_of(forward, session)
    assert "(no such shape): the plain path is used" in note
    assert not forward.shared


def test_a_model_that_cannot_share_takes_the_plain_path_and_trains_the_same(
    tmp_path: Path, pairs: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = recipe_text(tiny_model, pairs, train={"max_steps": 2})
    shared = train(tmp_path / "shared", text).metrics("step")
    monkeypatch.setattr("localdpo.model.forward.can_share", lambda model: False)
    notes: list[str] = []
    recipe = load_recipe(write_recipe(tmp_path / "plain", text))
    assert not assemble(recipe, EAGER, notes.append).forward.shared
    assert len([note for note in notes if not note.startswith("memory:")]) == 1
    plain = train(tmp_path / "plain", text).metrics("step")
    for a, b in zip(shared, plain, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-4)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-3)


def test_the_tolerance_follows_the_precision(tmp_path: Path, pairs: Path, tiny_model: Path) -> None:
    session = session_of(tmp_path, recipe_text(tiny_model, pairs))
    logps, lengths = np.array([-10.0, -5000.0]), np.array([4, 400])
    found = tolerance(logps, lengths, session.forward)
    np.testing.assert_allclose(found, [1e-3, 1e-2])
    session.base.model.set_dtype(mx.bfloat16)
    found = tolerance(logps, lengths, session.forward)
    np.testing.assert_allclose(found, [0.1, 1.0])


def test_gradient_checkpointing_changes_nothing_but_memory(
    tmp_path: Path, pairs: Path, tiny_model: Path
) -> None:
    found = [
        train(
            tmp_path / str(on),
            recipe_text(tiny_model, pairs, train={"max_steps": 2, "gradient_checkpointing": on}),
        ).metrics("step")
        for on in (False, True)
    ]
    for a, b in zip(*found, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-4)


@pytest.mark.parametrize("first", [(1, 1), (1, 4), (6, 1)])
@pytest.mark.parametrize("rows", [1, 3])
def test_positions_that_are_right_by_accident_are_found_out(first: tuple[int, int], rows: int) -> None:
    """GPT-2 counts positions from the first one: right in a line of one row with one response."""
    model = gpt2.Model(gpt2.ModelArgs("gpt2", 256, 64, 4, 2, 256, 1e-5, 160))
    forward, notes = Forward(model), list[str]()
    check_paths(forward, rows_of([first, (7, 5), (2, 9)][:rows]), notes.append)
    assert not forward.shared
    assert len(notes) == 1


def rows_of(lengths: Sequence[tuple[int, int]]) -> Rows:
    """Rows of random tokens, with one response each; lengths of prompt and response."""
    rng = np.random.default_rng(0)
    encoded = [
        EncodedRow(i, rng.integers(1, 160, prompt, np.int32), (rng.integers(1, 160, response, np.int32),))
        for i, (prompt, response) in enumerate(lengths)
    ]
    return Rows(cast("Mixture", encoded), np.arange(len(lengths)), 0)


def test_a_model_that_answers_otherwise_than_it_would_be_trained_is_refused() -> None:
    """gemma3n's layers share keys and values only in a cache."""
    args = gemma3n.ModelArgs("gemma3n", GEMMA3N)
    with pytest.raises(UserError, match=r"^model: models of the type gemma3n compute other log-prob"):
        check_paths(Forward(gemma3n.Model(args)), rows_of([(7, 5), (12, 9)]), lambda note: None)
    for family in ("gemma4_text", "qwen3_next"):
        forward, notes = Forward(tiny(family)), list[str]()
        check_paths(forward, rows_of([(7, 5), (12, 9)]), notes.append)
        assert not forward.shared
        assert len(notes) == 1
