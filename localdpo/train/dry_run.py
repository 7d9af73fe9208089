"""What `localdpo train --dry-run` shows: the recipe as it will run, the data, the steps, the memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn
import numpy as np
from rich.table import Table

from localdpo.core.text import counted
from localdpo.data.batches import rows_per_epoch
from localdpo.data.inspect import named_parts, render_marked, report_lines, statistics
from localdpo.data.store import MixturePart
from localdpo.model.backend import Backend, prepare
from localdpo.model.load import build_model, load_tokenizer
from localdpo.model.lora import LoraConfig
from localdpo.model.packed import can_share
from localdpo.out.console import Console, Text
from localdpo.recipe.load import dump_recipe
from localdpo.recipe.schema import Recipe
from localdpo.trackers.registry import require_packages
from localdpo.train import unpaired
from localdpo.train.assemble import attach_adapter, reference_weights
from localdpo.train.data import NOTHING_HELD_OUT, Rows, open_rows
from localdpo.train.fit import Layout, fit
from localdpo.train.step import Schedule, length_note, make_schedule


@dataclass(frozen=True)
class Measured:
    """What a run of a recipe would be: its data, steps and memory."""

    recipe: Recipe
    backend: Backend
    tokenizer: Any
    model: nn.Module
    adapter: LoraConfig
    train: Rows
    valid: Rows
    schedule: Schedule

    def layout(self) -> Layout:
        """How its rows fit into memory. Raises UserError where they do not."""
        model, shared = self.model, can_share(self.model)
        return fit(self.recipe, self.train, self.schedule, model, self.adapter, self.backend, shared=shared)


def measure(recipe: Recipe, note: Callable[[str], None]) -> Measured:
    """Look at what a run of the recipe would be. The model is built, but its weights are not loaded.

    Raises UserError or UserErrors for what would stop the run: a missing model or adapter, bad data.
    """
    require_packages(recipe.report_to)
    backend = prepare()
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code)
    model, _ = build_model(recipe.model, trust_remote_code=recipe.trust_remote_code)
    adapter = attach_adapter(model, recipe)
    reference_weights(model, recipe, adapter)
    train, valid = open_rows(
        recipe, tokenizer, lambda source, rows: note(f"{source}: {counted(rows, 'row')} tokenised")
    )
    schedule = make_schedule(recipe.train, train.per_epoch)
    return Measured(recipe, backend, tokenizer, model, adapter, train, valid, schedule)


def dry_run(recipe: Recipe, console: Console) -> None:
    """Print what a run of the recipe would be. Raises what `measure` raises."""

    def show(*lines: str) -> None:
        for line in lines:
            console.print(Text(line))

    def heading(title: str) -> None:
        console.print()
        console.rule(Text(title), align="left")

    measured = measure(recipe, show)
    train, valid, schedule = measured.train, measured.valid, measured.schedule
    heading("recipe")
    show(dump_recipe(recipe).rstrip())
    heading("data")
    console.print(_token_table(train, valid))
    for name, part in named_parts(train.store, valid.store):
        show(*(line.removeprefix("data.") for line in (_rows_read(name, part), *report_lines(name, part))))
    show(*_shares(train), *unpaired.notes(recipe.loss, train, valid))
    if not len(valid):
        show(NOTHING_HELD_OUT)
    for index in train.store.bounds[:-1]:
        row = train.store.name_rows(np.array([index]))
        heading(row if index in train.indices else f"{row}, held out to evaluate on")
        show(render_marked(train.store[index], measured.tokenizer._tokenizer).rstrip())
    heading("run")
    layout = measured.layout()
    show(
        f"{counted(schedule.total, 'step')} of {counted(recipe.train.batch_size, 'row')} "
        f"({layout.rows} in memory at once), "
        f"{counted(schedule.rows, 'row')}, {counted(schedule.per_epoch, 'step')} an epoch, "
        f"{counted(schedule.warmup, 'step')} of warm-up"
    )
    length = length_note(recipe.train, schedule)
    show(
        *([length] if length else []),
        _adapter_line(recipe, measured.adapter),
        *layout.lines,
        *measured.backend.hints,
    )


def _token_table(train: Rows, valid: Rows) -> Table:
    """Lengths in tokens; one entry for a mixture that is split."""
    table = Table("tokens", "rows", "mean", "median", "95%", "longest")
    for label, rows in (("train", train), ("valid", valid)):
        if label == "valid" and valid.store is train.store:
            continue
        for name, lengths in statistics(rows.store).items():
            figures = f"{lengths.mean:.0f}", f"{lengths.median:.0f}", f"{lengths.p95:.0f}", f"{lengths.max}"
            table.add_row(f"{label} {name}", f"{len(rows.store):,}", *figures)
    return table


def _rows_read(name: str, part: MixturePart) -> str:
    """What became of the rows of a data set; of unpaired ones, how many have which label."""
    report, labels = part.store.report, ""
    if part.store.desirable is not None:
        desirable = int(part.store.desirable.sum())
        labels = f", {desirable:,} desirable, {len(part.store) - desirable:,} undesirable"
    return (
        f"{name}: {counted(report.read, 'row')} read, {report.truncated:,} truncated, "
        f"{report.merged:,} with a merged boundary{labels}"
    )


def _shares(train: Rows) -> list[str]:
    """What an epoch takes of each data set, a line each; nothing where there is only one of weight 1."""
    parts = train.store.parts
    if len(parts) == 1 and parts[0].weight == 1.0:
        return []
    return [
        f"an epoch takes {counted(taken, 'row')} ({taken / train.per_epoch:.0%}) of {part.source}: "
        f"{count:,} to train on, weight {part.weight:g}"
        for part, count in zip(parts, train.counts, strict=True)
        for taken in [rows_per_epoch([count], [part.weight])]
    ]


def _adapter_line(recipe: Recipe, adapter: LoraConfig) -> str:
    blocks = "all blocks" if adapter.layers == -1 else f"the last {counted(adapter.layers, 'block')}"
    layers = "all linear layers" if adapter.keys is None else ", ".join(adapter.keys)
    start = "fresh" if recipe.adapter is None else f"starts from {recipe.adapter}"
    if recipe.reference_adapter is not None:
        start += f"; the reference is {recipe.reference_adapter}"
    shape = f"{adapter.type}, rank {adapter.rank}, scale {adapter.scale:g}"
    return f"adapter: {shape}, {layers} of {blocks}; {start}"
