"""What `localdpo train --dry-run` shows: the recipe as it will run, the data, the steps, the memory."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from localdpo.data.inspect import LengthSummary, render_marked, statistics
from localdpo.data.store import describe_dropped
from localdpo.model.backend import prepare
from localdpo.model.load import load_tokenizer, model_path
from localdpo.model.memory import MemoryEstimate, estimate
from localdpo.recipe.load import dump_recipe
from localdpo.recipe.schema import Recipe
from localdpo.train.plan import Plan, make_plan
from localdpo.train.rows import Rows
from localdpo.train.session import adapter_shape, open_rows


def dry_run(recipe: Recipe, console: Console) -> None:
    """Print what a run of the recipe would be. The model's weights are not loaded.

    Raises:
        UserError, UserErrors: what would stop the run: a missing model or adapter, bad data.
    """
    backend = prepare()
    tokenizer = load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code)
    train, valid = open_rows(recipe, tokenizer)
    plan = make_plan(recipe.train, len(train))
    _heading(console, "recipe")
    console.print(Text(dump_recipe(recipe).rstrip()))
    _heading(console, "data")
    console.print(_token_table(train, valid))
    for label, rows in _stores(train, valid):
        report = rows.store.report
        console.print(
            Text(
                f"{label}: {report.read:,} rows read, {report.truncated:,} truncated, "
                f"{report.merged:,} with a merged boundary; dropped: {describe_dropped(dict(report.dropped))}"
            )
        )
    _heading(console, "first row")
    console.print(Text(render_marked(train.store[int(train.indices[0])], tokenizer._tokenizer).rstrip()))
    _heading(console, "run")
    console.print(Text(_steps(recipe, plan)))
    memory = _memory(recipe, train, cpu=backend.is_cpu)
    console.print(
        Text(f"memory: about {_size(memory.total)} ({_parts(memory)}); an estimate, on {backend.device}")
    )
    for hint in backend.hints:
        console.print(Text(hint))


def _stores(train: Rows, valid: Rows) -> list[tuple[str, Rows]]:
    """The stores of a run, one entry for one that is split."""
    return [("train", train)] if valid.store is train.store else [("train", train), ("valid", valid)]


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


def _steps(recipe: Recipe, plan: Plan) -> str:
    train = recipe.train
    micro = train.micro_batch_size or train.batch_size
    return (
        f"{plan.total} steps of {train.batch_size} rows ({micro} in memory at once), {plan.rows:,} rows, "
        f"{plan.per_epoch} steps an epoch, {plan.warmup} steps of warm-up"
    )


def _memory(recipe: Recipe, train: Rows, *, cpu: bool) -> MemoryEstimate:
    rows = min(recipe.train.micro_batch_size or recipe.train.batch_size, len(train))
    store = train.store
    return estimate(
        model_path(recipe.model),
        cpu=cpu,
        rank=adapter_shape(recipe).rank,
        prompt_tokens=int(store.prompt_lengths[train.indices].max()),
        response_tokens=int(store.response_lengths[train.indices].max()),
        rows=rows,
        responses=store.response_lengths.shape[1],
        checkpoint=recipe.train.gradient_checkpointing,
    )


def _parts(memory: MemoryEstimate) -> str:
    return (
        f"weights {_size(memory.weights)}, adapter and optimizer {_size(memory.adapter)}, "
        f"activations {_size(memory.activations)}, logits {_size(memory.logits)}"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
