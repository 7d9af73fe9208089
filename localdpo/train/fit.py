"""What fits in memory: rows at once, and whether activations are recomputed, from the estimate."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.nn as nn
import numpy as np

from localdpo.core.errors import UserError
from localdpo.data.batches import bucket
from localdpo.model.arrays import named
from localdpo.model.backend import Backend, memory_limit
from localdpo.model.head import CHUNK_BYTES
from localdpo.model.load import model_path
from localdpo.model.lora import LoraConfig
from localdpo.model.memory import BatchShape, MemoryEstimate, ModelShape, estimate, model_shape
from localdpo.recipe.schema import Recipe
from localdpo.train.rows import Rows, micro_batch

# Tokens of a micro-batch on the CPU: it gains nothing from more, and loses to padding.
CPU_TOKENS = 256
# What `auto` fills of the memory: the estimate may be a tenth too low.
FILLED = 0.9


@dataclass(frozen=True)
class Fit:
    """How a run is laid out in memory.

    Attributes:
        micro: rows in memory at once.
        checkpoint: whether activations are recomputed.
        line: the estimate against the limit, for a person.
    """

    micro: int
    checkpoint: bool
    line: str


def fit(
    recipe: Recipe, train: Rows, model: nn.Module, config: LoraConfig, backend: Backend, *, shared: bool
) -> Fit:
    """What the recipe says, and what fits where it says `auto`.

    On a GPU `auto` takes as many rows as fit, up to the batch; on the CPU some 256 tokens. Activations are
    recomputed where the fewest rows that can be taken do not fit otherwise.

    Args:
        model: with adapters of the shape `config`; its arrays are not read.
        shared: whether the prompt is run once for all its responses.

    Raises:
        UserError: not even one row (the batch, for a loss that needs all of it) fits.
    """
    section, limit = recipe.train, memory_limit(backend.device)
    separable = recipe.loss.spec.separable
    wanted = section.micro_batch_size
    fewest = 1 if separable else section.batch_size
    if wanted != "auto":
        most = wanted
    elif separable and backend.is_cpu:
        most = micro_batch(train, section.batch_size, CPU_TOKENS)
    else:
        most = section.batch_size
    try:
        sizes = model_shape(model_path(recipe.model), cpu=backend.is_cpu)
    except (KeyError, TypeError) as error:
        # Unknown names in its config.json: on a GPU, where no one can know what fits, as few rows as can be.
        micro = fewest if wanted == "auto" and not backend.is_cpu else most
        return Fit(micro, section.gradient_checkpointing is True, _unknown(error))
    need = Need(train, sizes, model, config, backend, shared=shared)
    if section.gradient_checkpointing == "auto":
        checkpoint = need(fewest if wanted == "auto" else most, False).total > FILLED * limit
    else:
        checkpoint = section.gradient_checkpointing
    if (least := need(fewest, checkpoint).total) > limit:
        raise UserError(_too_much(recipe, train, backend, least, limit, checkpoint))
    micro = most
    if wanted == "auto":
        while micro > fewest and need(micro, checkpoint).total > FILLED * limit:
            micro -= 1
    found = need(micro, checkpoint)
    line = (
        f"memory: about {size(found.total)} of {size(limit)} ({_parts(found, sizes)}); "
        f"an estimate, on {backend.device}"
    )
    if checkpoint and section.gradient_checkpointing == "auto":
        line += "; gradient checkpointing is on: without it a step would not fit"
    if found.total > limit:
        line += "; more than there is: lower train.micro_batch_size"
    return Fit(micro, checkpoint, line)


class Need:
    """The estimate for micro-batches of some rows of a run: that of the worst one."""

    def __init__(
        self,
        train: Rows,
        model: ModelShape,
        tuned: nn.Module,
        config: LoraConfig,
        backend: Backend,
        *,
        shared: bool,
    ) -> None:
        self._model, self._shared = model, shared
        self._adapter = sum(array.nbytes for array in named(tuned.trainable_parameters()).values())
        self._adapted = model.blocks if config.layers == -1 else config.layers
        self._dora = config.type == "dora"
        self._chunk = CHUNK_BYTES[backend.device]
        self._rows = len(train)
        self._responses = train.store.response_lengths.shape[1]
        # The longest prompt there is with each length of response: what a row can be like.
        prompts = train.store.prompt_lengths[train.indices]
        responses = train.store.response_lengths[train.indices].max(axis=1)
        longest = np.zeros(int(responses.max()) + 1, dtype=np.int64)
        np.maximum.at(longest, responses, prompts)
        self._lengths = {(bucket(int(longest[r]) - 1), bucket(int(r))) for r in np.flatnonzero(longest)}

    def __call__(self, rows: int, checkpoint: bool) -> MemoryEstimate:
        """The largest estimate: rows that come together are padded to the longest prompt and response."""
        contexts, widths = zip(*self._lengths, strict=True)
        rows = min(rows, self._rows)
        lengths = self._lengths if rows == 1 else {(max(contexts), max(widths))}
        found = (
            estimate(
                self._model,
                BatchShape(rows, context, width, self._responses, self._shared),
                adapter=self._adapter,
                adapted=self._adapted,
                checkpoint=checkpoint,
                chunk_bytes=self._chunk,
                dora=self._dora,
            )
            for context, width in lengths
        )
        return max(found, key=lambda one: one.total)


def _unknown(error: KeyError | TypeError) -> str:
    if isinstance(error, KeyError):
        return f"memory: no estimate, since the model's config.json has no {error}"
    return "memory: no estimate, since the model's config.json gives a list of sizes for its blocks"


def _too_much(recipe: Recipe, train: Rows, backend: Backend, least: int, limit: int, checkpoint: bool) -> str:
    section = recipe.train
    if recipe.loss.spec.separable:
        longest = int(train.lengths(np.arange(len(train))).max())
        what, ways = f"a row of {longest:,} tokens", []
    else:
        what = f"the batch of {section.batch_size} rows, which the loss compares with each other,"
        ways = ["lower train.batch_size"]
    ways.append(f"lower train.max_length ({section.max_length})")
    if not checkpoint:
        ways.append("set train.gradient_checkpointing=true")
    # On the CPU quantised weights are loaded as float32.
    ways.append("take a smaller model" if backend.is_cpu else "take a quantised (4-bit) or smaller model")
    listed = f"{', '.join(ways[:-1])}, or {ways[-1]}"
    return f"memory: {what} takes about {size(least)}, but there are {size(limit)}: {listed}"


def _parts(memory: MemoryEstimate, model: ModelShape) -> str:
    note = "" if model.weights == model.stored else f" (float32 on the CPU; {size(model.stored)} on disk)"
    return (
        f"weights {size(memory.weights)}{note}, adapter and optimizer {size(memory.adapter)}, "
        f"activations {size(memory.activations)}, logits and gradients {size(memory.working)}"
    )


def size(count: int) -> str:
    """Bytes for a person."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
