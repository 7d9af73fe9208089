"""Rows at once and checkpointing, from the memory there is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_folders import recipe_text, write_pairs
from training_runs import EAGER, write_recipe

from localdpo.core.errors import UserError
from localdpo.model.backend import Backend
from localdpo.model.forward import batch_arrays, needed_shape
from localdpo.model.load import build_model, load_tokenizer
from localdpo.recipe.load import load_recipe
from localdpo.train import fit as room
from localdpo.train import worker
from localdpo.train.assemble import assemble, attach_adapter
from localdpo.train.control import StopRequest
from localdpo.train.data import DrawnRows, Rows, micro_batch, open_rows
from localdpo.train.fit import CPU_TOKENS, Layout, MemoryNeed, fit
from localdpo.train.step import MAX_SHAPES, make_schedule

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("own_cache")]
GPU = Backend("metal", None, True, ())


class Setting:
    """A recipe of 16 pairs with the tiny model, laid out under a memory of one's choice."""

    def __init__(self, folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.model, self.monkeypatch = folder, model, monkeypatch
        self.pairs = write_pairs(folder / "pairs.jsonl", 16)

    def parts(self, backend: Backend, **changes: Any) -> tuple[Any, ...]:
        train = {"batch_size": 8, "compile": False, **changes.pop("train", {})}
        recipe = load_recipe(
            write_recipe(self.folder, recipe_text(self.model, self.pairs, self.pairs, train=train, **changes))
        )
        model, _ = build_model(recipe.model)
        config = attach_adapter(model, recipe)
        train = open_rows(recipe, load_tokenizer(recipe.model))[0]
        return recipe, train, make_schedule(recipe.train, train.per_epoch), model, config, backend

    def fit(self, memory: int, *, backend: Backend = GPU, **changes: Any) -> Layout:
        self.monkeypatch.setattr(room, "memory_limit", lambda device: memory)
        return fit(*self.parts(backend, **changes), shared=True)

    def need(self, rows: int, checkpoint: bool, *, backend: Backend = GPU) -> int:
        """Bytes that `auto` wants for so many rows: the estimate and a margin."""
        _, train, _, model, config, _ = self.parts(backend)
        sizes = room.model_shape(self.model, cpu=backend.is_cpu)
        need = MemoryNeed(train, sizes, model, config, backend, shared=True)
        return int(need(rows, checkpoint).total / room.FILLED) + 1


@pytest.fixture
def setting(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    # A vocabulary's chunk of logits would be larger than all else in so small a model.
    monkeypatch.setattr(room, "CHUNK_BYTES", {"metal": 1, "cpu": 1})
    return Setting(tmp_path, tiny_model, monkeypatch)


def test_a_gpu_takes_the_rows_that_fit_up_to_the_batch(setting: Setting) -> None:
    assert setting.fit(10**10).micro == 8
    for rows in (1, 3, 7):
        assert setting.fit(setting.need(rows, False)).micro == rows
        assert not setting.fit(setting.need(rows, False)).checkpoint


def test_activations_are_recomputed_where_one_row_does_not_fit_without(setting: Setting) -> None:
    less = setting.fit(setting.need(1, False) - 2)
    assert (less.checkpoint, less.micro >= 1) == (True, True)
    assert "gradient checkpointing is on" in less.lines[0]
    for on in (True, False):
        assert setting.fit(10**10, train={"gradient_checkpointing": on}).checkpoint is on


def test_a_cpu_takes_its_few_tokens_but_never_more_than_fit(setting: Setting) -> None:
    _, train, *_ = setting.parts(EAGER)
    usual = micro_batch(train, 8, CPU_TOKENS)
    assert 1 < usual < 8
    assert setting.fit(10**10, backend=EAGER).micro == usual
    assert setting.fit(setting.need(1, False, backend=EAGER), backend=EAGER).micro == 1


def test_micro_batches_side_by_side_are_those_of_a_rank(setting: Setting) -> None:
    setting.monkeypatch.setattr(room, "lane_count", lambda: 2)
    recipe, train, *rest = setting.parts(EAGER, train={"micro_batch_size": 4})
    assert fit(recipe, train, *rest, shared=True).lanes == 2
    assert fit(recipe, replace(train, ranks=2), *rest, shared=True).lanes == 1


def test_a_loss_over_the_whole_batch_keeps_it_or_is_refused(setting: Setting) -> None:
    whole = setting.fit(setting.need(8, True), loss={"type": "aot"})
    assert (whole.micro, whole.checkpoint) == (8, True)
    with pytest.raises(UserError) as error:
        setting.fit(setting.need(1, False) // 2, loss={"type": "aot"})
    assert "the batch of 8 rows, which the loss compares with each other," in str(error.value)
    assert "lower train.batch_size" in str(error.value)


def test_a_row_that_does_not_fit_is_refused_with_what_to_change(setting: Setting) -> None:
    with pytest.raises(UserError) as error:
        setting.fit(1_000_000)
    (line,) = error.value.lines
    assert line.startswith("memory: a row of ")
    assert "but there are 1.0 MB: lower train.max_length (" in line
    assert line.endswith("or take a quantised (4-bit) or smaller model")
    with pytest.raises(UserError, match=r"set train\.gradient_checkpointing=true, or take a smaller model"):
        setting.fit(1_000_000, backend=EAGER, train={"gradient_checkpointing": False})


def test_a_traced_step_takes_the_rows_that_compute_least_and_fit(setting: Setting) -> None:
    """Its memory is that of the shapes; a number in the recipe is kept."""
    traced = {"train": {"compile": True}}
    _, train, plan, *_ = setting.parts(GPU, **traced)
    drawn = DrawnRows(train, batch_size=8, seed=0, steps=plan.total)
    tables = {rows: drawn.shapes(rows, shared=True, packed=True, most=MAX_SHAPES) for rows in (1, 2, 4, 8)}
    sizes = room.model_shape(setting.model, cpu=False)
    costs = {rows: room.traced_cost(table, sizes) for rows, table in tables.items()}
    assert costs[8] == pytest.approx(
        tables[8].computed
        + tables[8].scores * 4 * sizes.query / sizes.block_weights
        + room.LAUNCH_COLUMNS * tables[8].planned
    )
    most = setting.fit(10**10, **traced)
    assert most.micro == min(costs, key=lambda rows: costs[rows])
    assert most.shapes == tables[most.micro]
    assert setting.fit(10**10, train={"compile": True, "micro_batch_size": 3}).micro == 3
    little = setting.fit(setting.need(1, False), **traced)
    assert little.micro < most.micro
    assert little.shapes == tables[little.micro]


def test_the_line_of_a_traced_step_says_how_much_is_padding(setting: Setting) -> None:
    found = setting.fit(10**10, train={"compile": True, "micro_batch_size": 2})
    assert found.shapes is not None
    assert found.shapes.packing is not None
    assert (found.rows, found.micro) == (found.shapes.packing.rows, 2)
    assert found.lines[1] == (
        f"compiled: {len(found.shapes.shapes)} shapes of micro-batches, {found.shapes.packing.rows} rows "
        "at most; "
        f"{found.shapes.padding:.0%} of what is computed is padding, "
        f"{found.shapes.least_padding:.0%} if each had its own"
    )
    assert setting.fit(10**10).lines[1:] == ()


def test_a_row_longer_than_all_that_was_planned_for_counts_too(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"batch_size": 1, "micro_batch_size": 1, "seed": 1}
    longest = setting.fit(10**10, train=options)
    monkeypatch.setattr(room, "PLANNED_STEPS", 1)
    found = setting.fit(10**10, train={**options, "compile": True})
    assert found.shapes is not None
    _, train, *_ = setting.parts(GPU)
    # Lines are without the last token of the prompt.
    assert found.shapes.shapes[-1].width < int(train.lengths(np.arange(len(train))).max()) - 1
    assert found.memory == longest.memory


@pytest.mark.parametrize(("shared", "packed"), [(True, True), (True, False), (False, False)])
@pytest.mark.parametrize("micro", [1, 3, 5])
def test_every_micro_batch_of_a_run_has_a_shape_and_tokens_are_counted_once(
    shared: bool, packed: bool, micro: int, setting: Setting
) -> None:
    _, train, *_ = setting.parts(GPU)
    steps = 7  # 16 rows in steps of 5: epochs end with a step of one row
    drawn = DrawnRows(train, batch_size=5, seed=3, steps=steps)
    table = drawn.shapes(micro, shared=shared, packed=packed, most=4)
    options = {"batch_size": 5, "micro": micro, "seed": 3, "shared": shared, "packing": table.packing}
    assert (table.packing is None) != packed
    batches = [batch for step in range(steps) for batch in train.training_batch(step, **options)]
    assert table.planned == len(batches)
    tokens = 0
    for batch in batches:
        shape = table.of(needed_shape(batch, shared=shared))
        assert shape is not None
        arrays = batch_arrays(batch, shared=shared, shape=shape)
        assert arrays.gather_T.shape == (shape.scored,)
        assert len(batch.indices) <= shape.rows
        contexts = int(batch.context.size - batch.context_pad.sum())
        tokens += contexts * (1 if shared else 2) + 2 * int(batch.lengths.sum())
    assert len(table.shapes) <= 4
    assert table.real == tokens


def test_the_recipes_own_number_is_kept_and_told_if_it_is_too_many(setting: Setting) -> None:
    given = setting.fit(setting.need(1, True), train={"micro_batch_size": 8})
    assert (given.micro, given.checkpoint) == (8, True)
    assert given.lines[0].endswith("more than there is: lower train.micro_batch_size")


def test_one_row_is_the_worst_row_and_several_are_padded_to_the_longest_of_each(setting: Setting) -> None:
    _, train, _, model, config, _ = setting.parts(GPU)
    sizes = room.model_shape(setting.model, cpu=False)
    alone = [
        MemoryNeed(Rows(train.store, train.indices[[i]], train.pad), sizes, model, config, GPU, shared=True)(
            1, False
        )
        for i in range(len(train))
    ]
    need = MemoryNeed(train, sizes, model, config, GPU, shared=True)
    assert need(1, False).total == max(one.total for one in alone)
    assert need(len(train) + 5, False) == need(len(train), False)


def test_the_worker_says_the_estimate_and_refuses_what_does_not_fit(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", 8)
    write_recipe(tmp_path / "run", recipe_text(tiny_model, pairs))
    monkeypatch.setenv("LOCALDPO_MEMORY_GB", "0.001")
    monkeypatch.setattr(StopRequest, "install", lambda self: None)
    assert worker.main([str(tmp_path / "run")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "a row of " in line
    assert "but there are 1.0 MB" in line


def test_the_line_says_what_the_cpu_makes_of_a_quantised_base(
    tmp_path: Path, quantised_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    pairs = write_pairs(tmp_path / "pairs.jsonl", 8)
    recipe = load_recipe(write_recipe(tmp_path, recipe_text(quantised_model, pairs)))
    monkeypatch.setenv("LOCALDPO_MEMORY_GB", "4")
    assemble(recipe, EAGER, lines.append)
    (line,) = [line for line in lines if line.startswith("memory: about")]
    assert " of 4.00 GB (weights " in line
    assert "(float32 on the CPU; " in line
    assert " on disk), adapter and optimizer" in line
