"""What `localdpo train --dry-run` shows: the recipe as it will run, the data, the steps, the memory."""

from __future__ import annotations

import numpy as np
from rich.table import Table

from localdpo.core.text import counted
from localdpo.data.batches import rows_per_epoch
from localdpo.data.inspect import LengthSummary, named_parts, render_marked, report_lines, statistics
from localdpo.data.store import MixturePart
from localdpo.model.backend import prepare
from localdpo.model.load import build_model, load_tokenizer
from localdpo.model.lora import LoraConfig
from localdpo.model.shared_prompt import can_share
from localdpo.out.console import Console, Text
from localdpo.recipe.load import dump_recipe
from localdpo.recipe.schema import Recipe
from localdpo.train import unpaired
from localdpo.train.fit import Fit, fit
from localdpo.train.plan import Plan, make_plan
from localdpo.train.rows import NOTHING_HELD_OUT, Rows
from localdpo.train.session import attach_adapter
from localdpo.train.sources import open_rows


def dry_run(recipe: Recipe, console: Console) -> None:
    """Print what a run of the recipe would be. The model is built, but its weights are not loaded.

    Raises:
        UserError, UserErrors: what would stop the run: a missing model or adapter, bad data.
    """
    backend = prepare()
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code)
    model, _ = build_model(recipe.model, trust_remote_code=recipe.trust_remote_code)
    shape = attach_adapter(model, recipe)
    train, valid = open_rows(
        recipe, tokenizer, lambda source, rows: console.print(Text(f"{source}: {rows:,} rows tokenised"))
    )
    plan = make_plan(recipe.train, train.per_epoch)
    _heading(console, "recipe")
    console.print(Text(dump_recipe(recipe).rstrip()))
    _heading(console, "data")
    console.print(_token_table(train, valid))
    for name, part in named_parts(train.store, valid.store):
        for line in (_read(name, part), *report_lines(name, part)):
            console.print(Text(line.removeprefix("data.")))
    for line in _shares(train):
        console.print(Text(line))
    for note in unpaired.notes(recipe.loss, train, valid):
        console.print(Text(note))
    if not len(valid):
        console.print(Text(NOTHING_HELD_OUT))
    for index in train.store.bounds[:-1]:
        _heading(console, _example(train, index))
        console.print(Text(render_marked(train.store[index], tokenizer._tokenizer).rstrip()))
    _heading(console, "run")
    laid_out = fit(recipe, train, plan, model, shape, backend, shared=can_share(model))
    console.print(Text(_steps(recipe, plan, laid_out)))
    console.print(Text(_adapter(recipe, shape)))
    for line in (*laid_out.lines, *backend.hints):
        console.print(Text(line))


def _stores(train: Rows, valid: Rows) -> list[tuple[str, Rows]]:
    """The stores of a run, one entry for one that is split."""
    return [("train", train)] if valid.store is train.store else [("train", train), ("valid", valid)]


def _read(name: str, part: MixturePart) -> str:
    """What became of the rows of a data set."""
    report = part.store.report
    return (
        f"{name}: {counted(report.read, 'row')} read, {report.truncated:,} truncated, "
        f"{report.merged:,} with a merged boundary{_labels(part)}"
    )


def _labels(part: MixturePart) -> str:
    """How many unpaired rows of a data set have which label."""
    desirable, rows = statistics(part.store).desirable, len(part.store)
    return "" if desirable is None else f", {desirable:,} desirable, {rows - desirable:,} undesirable"


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


def _example(train: Rows, index: int) -> str:
    """The heading of the row at `index` of the mixture: its name, and that the run does not train on it."""
    name = train.store.name_rows(np.array([index]))
    return name if index in train.indices else f"{name}, held out to evaluate on"


def _heading(console: Console, title: str) -> None:
    console.print()
    console.rule(Text(title), align="left")


def _token_table(train: Rows, valid: Rows) -> Table:
    table = Table("tokens", "rows", "mean", "median", "95%", "longest")
    for label, rows in _stores(train, valid):
        stats = statistics(rows.store)
        names = ("chosen", "rejected") if len(stats.responses) == 2 else ("response",)
        parts = [("prompt", stats.prompt), *zip(names, stats.responses, strict=True), ("row", stats.rows)]
        for name, summary in parts:
            table.add_row(f"{label} {name}", f"{stats.count:,}", *_figures(summary))
    return table


def _figures(summary: LengthSummary) -> list[str]:
    return [f"{summary.mean:.0f}", f"{summary.median:.0f}", f"{summary.p95:.0f}", f"{summary.max}"]


def _steps(recipe: Recipe, plan: Plan, laid_out: Fit) -> str:
    train = recipe.train
    return (
        f"{counted(plan.total, 'step')} of {counted(train.batch_size, 'row')} "
        f"({laid_out.micro} in memory at once), "
        f"{counted(plan.rows, 'row')}, {counted(plan.per_epoch, 'step')} an epoch, "
        f"{counted(plan.warmup, 'step')} of warm-up"
    )


def _adapter(recipe: Recipe, shape: LoraConfig) -> str:
    blocks = "all blocks" if shape.layers == -1 else f"the last {shape.layers} blocks"
    layers = "all linear layers" if shape.keys is None else ", ".join(shape.keys)
    start = "fresh" if recipe.adapter is None else f"starts from {recipe.adapter}"
    return f"adapter: {shape.type}, rank {shape.rank}, scale {shape.scale:g}, {layers} of {blocks}; {start}"
