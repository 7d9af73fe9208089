"""One optimizer step: its arrays, what it minimises, its learning rate, and the update.

A batch is one or several micro-batches. Each adds its gradients to those it is handed, zeros at first, so
that all of them are calls of one function; a second one, which has one shape, clips and updates. MLX traces
both as functions of arrays.

MLX makes a trace for every shape and keeps it as long as the function lives, a megabyte and more for each
layer of the model. The shapes of a run are chosen so that they are few (see `data.shapes`). Where more come
all the same, the function is dropped with its traces, and built again.

Shape legend: N responses of a micro-batch (of each row the first, then of each row the second), B its rows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Final, NamedTuple, Protocol

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map

from localdpo.core.text import counted
from localdpo.data.batches import steps_per_epoch
from localdpo.data.types import Batch
from localdpo.model.arrays import weights_restored
from localdpo.model.forward import Forward, ForwardArrays
from localdpo.model.lanes import side_by_side
from localdpo.objective.losses import pair_losses, unpaired_losses
from localdpo.objective.metrics import (
    BatchSums,
    Sums,
    demonstration_metrics,
    pair_metrics,
    unpaired_metrics,
)
from localdpo.objective.scores import PairScores, ResponseScores, UnpairedScores
from localdpo.recipe.loss import LossSection
from localdpo.recipe.schema import TrainSection
from localdpo.train.ranks import ALONE, Ranks

# Traces that are alive at a time: one for each shape of micro-batches, and that of the update.
MAX_TRACES: Final = 16
MAX_SHAPES: Final = MAX_TRACES - 1


# --- what a step minimises ------------------------------------------------------------------------------


class Objective:
    """A recipe's loss over the rows of a batch.

    The sum over a batch is divided by a count that is known before any of its micro-batches runs (rows for a
    preference loss, scored tokens for SFT), so k micro-batches add up to the one batch.

    Attributes:
        separable: whether the loss of a row is its own. If not, all rows of a step come in one call.
    """

    def __init__(self, loss: LossSection) -> None:
        self._loss, self._options, self._beta = loss.spec, loss.options, loss.beta
        self.separable = loss.spec.separable

    def sums(
        self,
        scores: ResponseScores,
        desirable_B: mx.array | None = None,
        baseline: mx.array | None = None,
        weights_B: mx.array | None = None,
    ) -> BatchSums:
        """The metrics as sums; the numerator of `loss` is what is minimised.

        scores [N]: of the policy, and of the reference for a loss that has one. For unpaired rows
        `desirable_B` (bool) has their labels, and `baseline` the KL baseline of the whole step, a scalar, for
        a loss that reads it. `weights_B` has 1 for a row that counts, 0 for one that fills a place; where it
        is None, all count.
        """
        if self._loss.data == "demonstrations":
            return demonstration_metrics(scores, weights_B)
        if self._loss.data == "unpaired":
            assert desirable_B is not None
            rows = UnpairedScores(scores, desirable_B, baseline)
            losses = unpaired_losses(self._loss, rows, self._options)
            return unpaired_metrics(rows, losses, self._beta, weights_B)
        pairs = PairScores.of_responses(scores)
        return pair_metrics(pairs, pair_losses(self._loss, pairs, self._options), self._beta, weights_B)

    def margins(self, scores: ResponseScores) -> mx.array | None:
        """Chosen less rejected reward of each pair [B]; None without pairs."""
        if self._loss.data != "pairs":
            return None
        chosen_B, rejected_B = PairScores.of_responses(scores).rewards(self._beta)
        return chosen_B - rejected_B

    def count(self, batches: Sequence[Batch]) -> int:
        """What the sum over the micro-batches of one step is divided by."""
        if self._loss.data == "demonstrations":
            return sum(int(batch.lengths.sum()) for batch in batches)
        return sum(len(batch.indices) for batch in batches)


# --- how far it moves -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Schedule:
    """The steps of a run and the learning rate of each: pure arithmetic on the recipe.

    `rows` are those that an epoch takes; `total`, `per_epoch` and `warmup` are steps; `decay` is `linear`,
    `cosine` or `constant`.
    """

    rows: int
    total: int
    per_epoch: int
    warmup: int
    peak: float
    decay: str

    def learning_rate(self, step: int) -> float:
        """The learning rate of the 0-based `step`.

        Warm-up is linear and reaches the peak at step `warmup`; it starts above zero, so that the
        first step is not lost. Decay reaches 0 one step after the last.
        """
        if step < self.warmup:
            return self.peak * (step + 1) / (self.warmup + 1)
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        if self.decay == "linear":
            return self.peak * (1.0 - progress)
        if self.decay == "cosine":
            return self.peak * 0.5 * (1.0 + math.cos(math.pi * progress))
        return self.peak

    def epoch(self, step: int) -> float:
        """Passes over the data after `step` steps."""
        return step / self.per_epoch


def make_schedule(train: TrainSection, rows: int) -> Schedule:
    """The schedule of a run whose epochs take `rows` rows. A warm-up longer than the run is cut to it.

    As in Hugging Face's trainers, `max_steps` alone decides how long the run is, whatever the rows; `epochs`
    alone does; of both, what ends first.
    """
    per_epoch = steps_per_epoch(rows, train.batch_size)
    epochs = train.epochs or (1 if train.max_steps is None else None)
    ends = [epochs and epochs * per_epoch, train.max_steps]
    total = min(steps for steps in ends if steps is not None)
    warmup = round(train.warmup * total) if isinstance(train.warmup, float) else train.warmup
    return Schedule(rows, total, per_epoch, min(warmup, total - 1), train.learning_rate, train.schedule)


def length_note(train: TrainSection, schedule: Schedule) -> str | None:
    """Which of `epochs` and `max_steps` ends the run, where a recipe gives both and they differ."""
    if train.epochs is None or train.max_steps is None:
        return None
    steps = train.epochs * schedule.per_epoch
    if steps == train.max_steps:
        return None
    by_epochs = f"train.epochs={train.epochs} ({counted(steps, 'step')})"
    (_, first), (_, other) = sorted(
        [(steps, by_epochs), (train.max_steps, f"train.max_steps={train.max_steps}")]
    )
    return f"{first} ends the run before {other} would"


# Adam and AdamW are bias-corrected, as everywhere else (MLX's default is not). RMSprop decays its squares at
# 0.99, as torch and the reference code do.
_OPTIMIZERS: Final[Mapping[str, Callable[[TrainSection], optim.Optimizer]]] = {
    "adamw": lambda t: optim.AdamW(t.learning_rate, weight_decay=t.weight_decay, bias_correction=True),
    "adam": lambda t: optim.Adam(t.learning_rate, bias_correction=True),
    "sgd": lambda t: optim.SGD(t.learning_rate, weight_decay=t.weight_decay),
    "rmsprop": lambda t: optim.RMSprop(t.learning_rate, alpha=0.99),
    "lion": lambda t: optim.Lion(t.learning_rate, weight_decay=t.weight_decay),
}


def make_optimizer(train: TrainSection) -> optim.Optimizer:
    """The recipe's optimizer."""
    return _OPTIMIZERS[train.optimizer](train)


# --- the step -------------------------------------------------------------------------------------------


class ReferenceSums(NamedTuple):
    """Log-probabilities of a batch's responses under the reference, nats.

    `public_N` has those of the public tokens, where responses are split.
    """

    total_N: mx.array
    public_N: mx.array | None = None


class BatchReference(Protocol):
    """What scores a batch under the reference (see `reference.py`)."""

    def sums(self, batch: Batch) -> ReferenceSums: ...


@dataclass(frozen=True, kw_only=True)
class StepArrays(ForwardArrays):
    """The arrays of a micro-batch.

    Attributes:
        count: what the sum over all micro-batches of the step is divided by, a scalar.
        reference_N: log-probabilities under the reference, nats, for a loss that has one.
        reference_public_N: the same over the public tokens, where responses are split.
        desirable_B: labels of unpaired rows, bool.
        baseline: the KL baseline of the whole step, a scalar in nats, for a loss that reads it.
        weights_B: of rows in a line with places for more: 1.0, or 0.0 for a place that is filled with the
            scores of the first row.
    """

    count: mx.array
    reference_N: mx.array | None = None
    reference_public_N: mx.array | None = None
    desirable_B: mx.array | None = None
    baseline: mx.array | None = None
    weights_B: mx.array | None = None

    @classmethod
    def of(cls, inputs: ForwardArrays, **others: Any) -> StepArrays:
        """What a forward pass takes, and the other fields."""
        given: dict[str, Any] = {field.name: getattr(inputs, field.name) for field in fields(inputs)}
        return cls(**given, **others)


@dataclass(frozen=True)
class StepResult:
    """Loss and mean metrics of the batch before the update, global norm of the gradients before clipping, and
    the seconds that each rank's gradients took.
    """

    loss: float
    grad_norm: float
    metrics: dict[str, float]
    seconds: tuple[float, ...]


class TrainStep:
    """The step of a model with a forward pass, an objective and an optimizer.

    Micro-batches that are not traced are computed side by side, `lanes` at a time (see `model.lanes`).
    Among several ranks each computes gradients of its own rows; the sum of all, which every rank then has, is
    that of the batch.

    Attributes:
        traces: how often MLX traced one of the two functions, over the life of this object.
    """

    def __init__(
        self,
        forward: Forward,
        objective: Objective,
        optimizer: optim.Optimizer,
        *,
        max_grad_norm: float,
        compiled: bool,
        lanes: int = 1,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        # A loss over the whole batch reads the scores of all ranks, which no trace can wait for.
        self._joins = ranks.size > 1 and not objective.separable
        compiled = compiled and not self._joins
        self.model = forward.model
        self.optimizer = optimizer
        self.traces = 0
        self._compiled, self._lanes = compiled, lanes
        self._shapes = set[tuple[tuple[int, ...], ...]]()
        optimizer.init(self.model.trainable_parameters())
        self._state = [self.model.state, optimizer.state, mx.random.state]

        def loss(arrays: StepArrays) -> tuple[mx.array, BatchSums]:
            policy = forward.scores(arrays, gradient=True)
            scores = policy.under(arrays.reference_N, arrays.reference_public_N)
            if self._joins:
                scores = _of_all(scores, ranks)
            sums = objective.sums(scores, arrays.desirable_B, arrays.baseline, arrays.weights_B)
            return sums["loss"][0] / arrays.count, sums

        differentiated = nn.value_and_grad(self.model, loss)

        def loss_and_gradients(arrays: StepArrays) -> Any:
            with weights_restored(self.model):
                return differentiated(arrays)

        # MLX traces functions of dicts, lists and arrays: the record of arrays is put together inside.
        def traced(tree: dict[str, Any], carry: Any) -> tuple[mx.array, BatchSums, Any]:
            self.traces += 1
            (value, sums), gradients = loss_and_gradients(StepArrays(**tree))
            return value, sums, tree_map(mx.add, carry, gradients)

        def update(carry: Any) -> mx.array:
            self.traces += compiled
            clipped, norm = optim.clip_grad_norm(carry, max_grad_norm)
            optimizer.update(self.model, clipped)
            return norm

        self._eager, self._untraced = loss_and_gradients, traced
        self._accumulate, self._update = self._traced(traced), self._traced(update)

    def _traced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self._compiled:
            return function
        return partial(mx.compile, inputs=self._state, outputs=self._state)(function)

    def __call__(self, micro_batches: Sequence[StepArrays], learning_rate: float) -> StepResult:
        """Take one step over the micro-batches of a batch."""
        began = time.perf_counter()
        self.optimizer.learning_rate = learning_rate
        self.model.train()
        totals, loss = Sums(), 0.0
        carry = tree_map(mx.zeros_like, self.model.trainable_parameters())
        if self._compiled:
            for arrays in micro_batches:
                tree = arrays.tree()
                self._make_room(tree)
                part, sums, carry = self._accumulate(tree, carry)
                mx.eval(part, sums, carry)
                loss += float(part.item())
                totals.add(sums)
        else:
            for (part, sums), gradients in side_by_side(self._eager, micro_batches, self._lanes):
                carry = tree_map(mx.add, carry, gradients)
                # Or the gradients of all micro-batches would be kept until the last one's are there.
                mx.eval(carry)
                loss += float(part.item())
                totals.add(sums)
        if self._joins and not micro_batches:
            self._ranks.gather({})  # as those with rows do in `_of_all`
        parts = self._ranks.gather((time.perf_counter() - began, loss, totals.sums()))
        if len(parts) > 1:
            # Of a loss over the whole batch every rank has computed all.
            counted = parts[:1] if self._joins else parts
            loss, totals = sum(part for _, part, _ in counted), Sums()
            for _, _, sums in counted:
                totals.add(sums)
        norm = self._update(self._ranks.add(carry))
        mx.eval(norm, self._state)
        self.model.eval()
        return StepResult(loss, float(norm.item()), totals.means(), tuple(seconds for seconds, _, _ in parts))

    def _make_room(self, tree: dict[str, mx.array]) -> None:
        """Drop the traces of all shapes where one more would be too many."""
        shape = tuple(tree[name].shape for name in sorted(tree))
        if shape not in self._shapes and len(self._shapes) == MAX_SHAPES:
            self._accumulate = self._traced(self._untraced)
            self._shapes.clear()
        self._shapes.add(shape)


def _of_all(scores: ResponseScores, ranks: Ranks) -> ResponseScores:
    """The scores of the pairs of all ranks, by rank; those of other ranks are constants to the gradient."""
    own = dict(scores.arrays())
    every = ranks.gather({name: np.array(mx.stop_gradient(array)).tolist() for name, array in own.items()})

    def joined(name: str) -> mx.array:
        parts = [mx.array(values.get(name, [])) for values in every]
        parts[ranks.rank] = own[name]
        pairs = [part.shape[0] // 2 for part in parts]
        chosen = [part[:count] for part, count in zip(parts, pairs, strict=True)]
        rejected = [part[count:] for part, count in zip(parts, pairs, strict=True)]
        return mx.concatenate([*chosen, *rejected])

    return ResponseScores(**{name: joined(name) for name in own})
