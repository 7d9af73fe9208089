"""What fits in memory: rows at once, whether activations are recomputed, and the shapes of traced steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

import mlx.nn as nn
import numpy as np

from localdpo.core.errors import UserError
from localdpo.core.text import counted
from localdpo.data.batches import Shape, ShapeTable, bucket
from localdpo.model.arrays import named
from localdpo.model.backend import Backend, memory_limit
from localdpo.model.head import CHUNK_BYTES
from localdpo.model.lanes import lane_count
from localdpo.model.load import model_path
from localdpo.model.lora import LoraConfig
from localdpo.model.memory import BatchShape, MemoryEstimate, ModelShape, estimate, kept_gates, model_shape
from localdpo.recipe.schema import Recipe, TrainSection
from localdpo.train.data import DrawnRows, Rows, micro_batch
from localdpo.train.step import MAX_SHAPES, Schedule

# Tokens of a micro-batch on the CPU: it gains nothing from more, and loses to padding.
CPU_TOKENS = 256
# What `auto` fills of the memory: the estimate may be a tenth too low.
FILLED = 0.9
# What a micro-batch costs a GPU beside its columns, in columns: launching its kernels. An estimate.
LAUNCH_COLUMNS: Final = 256
# Steps whose micro-batches the shapes of a traced run are chosen from, to bound the time it takes. A later
# micro-batch that none of them holds is traced by itself.
PLANNED_STEPS: Final = 10_000

# The shapes of a traced run, by rows of a micro-batch.
Tables = Callable[[int], ShapeTable]


@dataclass(frozen=True)
class Layout:
    """How a run is laid out in memory.

    Attributes:
        micro: rows of a micro-batch; a traced line takes more where they have room in its longest one.
        checkpoint: whether activations are recomputed.
        memory: the estimate; None where the model's config.json tells too little.
        lines: the estimate against the limit, and the shapes, in words.
        shapes: of the micro-batches of a traced run; None where nothing is traced.
        lanes: micro-batches that are computed at the same time (see `model.lanes`).
    """

    micro: int
    checkpoint: bool
    memory: MemoryEstimate | None
    lines: tuple[str, ...]
    shapes: ShapeTable | None
    lanes: int = 1

    @property
    def rows(self) -> int:
        """Rows in memory at once at most."""
        packing = None if self.shapes is None else self.shapes.packing
        return self.micro if packing is None else packing.rows


def fit(
    recipe: Recipe,
    train: Rows,
    schedule: Schedule,
    model: nn.Module,
    config: LoraConfig,
    backend: Backend,
    *,
    shared: bool,
) -> Layout:
    """What the recipe says, and what fits where it says `auto`.

    On a GPU `auto` takes as many rows as fit, up to the batch; on the CPU some 256 tokens, and so few that
    each core has rows of its own. Micro-batches are computed side by side as far as they fit. A traced step
    takes fewer where that computes less: all its micro-batches have one of a few shapes. Activations are
    recomputed where the fewest rows that can be taken do not fit otherwise.

    Args:
        schedule: of the run; its steps decide which rows come together.
        model: with adapters of the shape `config`; its arrays are not read.
        shared: whether the prompt is run once for all its responses.

    Raises UserError: not even one row (the batch, for a loss that needs all of it) fits.
    """
    section, limit = recipe.train, memory_limit(backend.device)
    separable = recipe.loss.spec.separable
    wanted = section.micro_batch_size
    batch = -(-section.batch_size // train.ranks)  # of this rank
    fewest = 1 if separable else batch
    if wanted != "auto":
        most = min(wanted, batch)
    elif separable and backend.is_cpu:
        most = min(micro_batch(train, batch, CPU_TOKENS), math.ceil(batch / lane_count()))
    else:
        most = batch
    tables = None
    lanes = lane_count() if separable else 1
    if traces(recipe, backend):
        lanes = 1
        # A loss over the whole batch cannot leave a row out.
        tables = _tables(train, schedule, section, shared=shared, packed=shared and separable)
    try:
        sizes = model_shape(model_path(recipe.model), cpu=backend.is_cpu)
    except (KeyError, TypeError) as error:
        # Unknown names in its config.json. On a GPU, where nobody knows what fits, as few rows as possible.
        micro = fewest if wanted == "auto" and not backend.is_cpu else most
        lacks = f"has no {error}" if isinstance(error, KeyError) else "gives a list of sizes for its blocks"
        line = f"memory: no estimate, since the model's config.json {lacks}"
        return _layout(micro, section.gradient_checkpointing is True, None, line, tables)
    need = MemoryNeed(train, sizes, model, config, backend, shared=shared, tables=tables)
    if section.gradient_checkpointing == "auto":
        checkpoint = need(fewest if wanted == "auto" else most, False).total > FILLED * limit
    else:
        checkpoint = section.gradient_checkpointing
    if (least := need(fewest, checkpoint).total) > limit:
        raise UserError(_too_much(recipe, train, backend, least, limit, checkpoint))
    micro = most
    if wanted == "auto":
        choices = _choices(most, fewest, tables, sizes)
        micro = next((rows for rows in choices if need(rows, checkpoint).total <= FILLED * limit), fewest)
    lanes = min(lanes, math.ceil(batch / micro))
    while lanes > 1 and need(micro, checkpoint, lanes).total > FILLED * limit:
        lanes -= 1
    memory = need(micro, checkpoint, lanes)
    stored = "" if sizes.weights == sizes.stored else f" (float32 on the CPU; {size(sizes.stored)} on disk)"
    line = (
        f"memory: about {size(memory.total)} of {size(limit)} (weights {size(memory.weights)}{stored}, "
        f"adapter and optimizer {size(memory.adapter)}, activations {size(memory.activations)}, "
        f"logits and gradients {size(memory.working)}); an estimate, on {backend.device}"
    )
    if checkpoint and section.gradient_checkpointing == "auto":
        line += "; gradient checkpointing is on: without it a step would not fit"
    if memory.total > limit:
        line += "; more than there is: lower train.micro_batch_size"
    return replace(_layout(micro, checkpoint, memory, line, tables), lanes=lanes)


def traces(recipe: Recipe, backend: Backend) -> bool:
    """Whether steps are traced by MLX.

    `auto` does not on the CPU, where its kernels are built by g++ and run no faster, nor for a loss over the
    whole batch: a traced line takes attention scores of each two of its tokens, too many for so many rows.
    """
    wanted = recipe.train.compile
    if wanted == "auto":
        wanted = not backend.is_cpu and recipe.loss.spec.separable
    return wanted and backend.compiled


def _tables(train: Rows, schedule: Schedule, section: TrainSection, *, shared: bool, packed: bool) -> Tables:
    """The shapes of a traced run by the rows of a micro-batch."""
    steps = min(schedule.total, PLANNED_STEPS)
    drawn = DrawnRows(train, batch_size=section.batch_size, seed=section.seed, steps=steps)
    return lru_cache(maxsize=None)(
        lambda rows: drawn.shapes(rows, shared=shared, packed=packed, most=MAX_SHAPES)
    )


def _choices(most: int, fewest: int, tables: Tables | None, model: ModelShape) -> Iterable[int]:
    """Rows at once to try, the best first: untraced the most, traced those that compute least."""
    if tables is None:
        return range(most, fewest - 1, -1)
    halves = [most]
    while halves[-1] > fewest:
        halves.append(max(fewest, halves[-1] // 2))
    return sorted(halves, key=lambda rows: traced_cost(tables(rows), model))


def traced_cost(table: ShapeTable, model: ModelShape) -> float:
    """What the micro-batches of a table cost, in tokens that run through the linear layers of a block.

    A score takes 2 * query products of its own, and its softmax goes to memory and back, which takes a GPU
    about as long again.
    """
    score = 2 * 2 * model.query / model.block_weights
    return table.computed + score * table.scores + LAUNCH_COLUMNS * table.planned


def _layout(
    micro: int, checkpoint: bool, memory: MemoryEstimate | None, line: str, tables: Tables | None
) -> Layout:
    table = None if tables is None else tables(micro)
    layout = Layout(micro, checkpoint, memory, (line,), table)
    if table is None:
        return layout
    shapes = (
        f"compiled: {counted(len(table.shapes), 'shape')} of micro-batches, "
        f"{counted(layout.rows, 'row')} at most; "
        f"{table.padding:.0%} of what is computed is padding, {table.least_padding:.0%} if each had its own"
    )
    return replace(layout, lines=(line, shapes))


class MemoryNeed:
    """The estimate for micro-batches of some rows of a run: that of the largest one."""

    def __init__(
        self,
        train: Rows,
        model: ModelShape,
        tuned: nn.Module,
        config: LoraConfig,
        backend: Backend,
        *,
        shared: bool,
        tables: Tables | None = None,
    ) -> None:
        self._model, self._shared, self._tables = model, shared, tables
        self._adapter = sum(array.nbytes for array in named(tuned.trainable_parameters()).values())
        self._adapted = model.blocks if config.layers == -1 else config.layers
        self._dora, self._gates = config.type == "dora", kept_gates(tuned)
        self._chunk = CHUNK_BYTES[backend.device]
        # Without the last token of the prompt, which heads each response.
        self._contexts = train.store.prompt_lengths[train.indices].astype(np.int64) - 1
        self._responses = train.store.response_lengths[train.indices].astype(np.int64)

    def __call__(self, rows: int, checkpoint: bool, lanes: int = 1) -> MemoryEstimate:
        """The largest estimate, of so many micro-batches at the same time."""
        estimates = (
            estimate(
                self._model,
                batch,
                adapter=self._adapter,
                adapted=self._adapted,
                checkpoint=checkpoint,
                chunk_bytes=self._chunk,
                dora=self._dora,
                gates=self._gates,
                lanes=lanes,
            )
            for batch in self._batches(rows)
        )
        return max(estimates, key=lambda memory: memory.total)

    def _batches(self, rows: int) -> Iterable[BatchShape]:
        """Micro-batches: those that are traced, and the longest rows there are, by each measure of length.

        Of a traced run the longest row alone: where no step that was planned takes it, it has a line, and a
        trace, of its own.
        """
        sequences, tables = self._responses.shape[1], self._tables
        if tables is not None:
            for shape in tables(rows).shapes:
                yield BatchShape.masked(shape) if self._shared else BatchShape.plain(shape, sequences)
            rows = 1
        scored = self._responses.sum(axis=1)
        for lengths in (self._contexts + scored, self._contexts + self._responses.max(axis=1), scored):
            longest = np.argsort(-lengths, kind="stable")[:rows]
            contexts, responses = self._contexts[longest], self._responses[longest]
            most = int(scored[longest].sum())
            if self._shared and tables is not None:
                yield BatchShape.masked(Shape(len(longest), int(contexts.sum()) + most, most))
            elif self._shared:
                yield BatchShape.line(contexts, responses.T)
            else:
                width = bucket(int((contexts + responses.max(axis=1)).max()))
                yield BatchShape.plain(Shape(len(longest), width, most), sequences)


def _too_much(recipe: Recipe, train: Rows, backend: Backend, least: int, limit: int, checkpoint: bool) -> str:
    section = recipe.train
    if recipe.loss.spec.separable:
        longest = int(train.lengths(np.arange(len(train))).max())
        what, ways = f"a row of {counted(longest, 'token')}", []
    else:
        what = f"the batch of {counted(section.batch_size, 'row')}, which the loss compares with each other,"
        ways = ["lower train.batch_size"]
    ways.append(f"lower train.max_length ({section.max_length})")
    if not checkpoint:
        ways.append("set train.gradient_checkpointing=true")
    if train.ranks > 1:
        what += (
            f" on each of {counted(train.ranks, 'rank')}, which share the rows but each hold the whole model,"
        )
    # On the CPU quantised weights are loaded as float32.
    ways.append("take a smaller model" if backend.is_cpu else "take a quantised (4-bit) or smaller model")
    listed = f"{', '.join(ways[:-1])}, or {ways[-1]}"
    return f"memory: {what} takes about {size(least)}, but there are {size(limit)}: {listed}"


def size(count: int) -> str:
    """Bytes for a person."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
