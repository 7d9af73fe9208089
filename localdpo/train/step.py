"""One optimizer step: forward, backward, clip and update, traced by MLX as functions of arrays.

A batch is one or several micro-batches. Each adds its gradients to those it is handed, zeros at first, so
that all of them are calls of one function; a second one, which has one shape, clips and updates.

MLX makes a trace for every shape and keeps it as long as the function lives, a megabyte and more for each
layer of the model. The shapes of a run are chosen so that they are few (see `data.shapes`). Where more come
all the same, the function is dropped, its traces with it, and made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map

from localdpo.model.forward import Arrays, Forward
from localdpo.objective.metrics import BatchSums, Sums
from localdpo.train.objectives import Objective

# Traces that are alive at a time: one for each shape of micro-batches, and that of the update.
MAX_TRACES: Final = 16
MAX_SHAPES: Final = MAX_TRACES - 1


@dataclass(frozen=True)
class StepResult:
    """What a step gives back.

    Attributes:
        loss: of the batch, before the update.
        grad_norm: global norm of the gradients before clipping.
        metrics: means over the batch, before the update.
    """

    loss: float
    grad_norm: float
    metrics: dict[str, float]


class TrainStep:
    """The step of a model with a forward pass, an objective and an optimizer.

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
    ) -> None:
        self.model = forward.model
        self.optimizer = optimizer
        self.traces = 0
        self._compiled = compiled
        self._shapes = set[tuple[tuple[int, ...], ...]]()
        optimizer.init(self.model.trainable_parameters())
        self._state = [self.model.state, optimizer.state, mx.random.state]

        def total(arrays: Arrays) -> tuple[mx.array, BatchSums]:
            sums = objective.sums(forward.scores(arrays, gradient=True), arrays)
            return sums["loss"][0] / arrays["count"], sums

        value_and_grad = nn.value_and_grad(self.model, total)

        def gradients(arrays: Arrays, carry: Any) -> tuple[mx.array, BatchSums, Any]:
            self.traces += compiled
            (loss, sums), grads = value_and_grad(arrays)
            return loss, sums, tree_map(mx.add, carry, grads)

        def update(carry: Any) -> mx.array:
            self.traces += compiled
            clipped, norm = optim.clip_grad_norm(carry, max_grad_norm)
            optimizer.update(self.model, clipped)
            return norm

        self._untraced = gradients
        self._gradients, self._update = self._traced(gradients), self._traced(update)

    def _traced(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if not self._compiled:
            return function
        return partial(mx.compile, inputs=self._state, outputs=self._state)(function)

    def __call__(self, micro_batches: Sequence[Arrays], learning_rate: float) -> StepResult:
        """Take one step over the micro-batches of a batch; each holds `count`, the batch's denominator."""
        self.optimizer.learning_rate = learning_rate
        self.model.train()
        totals, loss = Sums(), 0.0
        carry = tree_map(mx.zeros_like, self.model.trainable_parameters())
        for arrays in micro_batches:
            self._make_room(arrays)
            part, sums, carry = self._gradients(arrays, carry)
            mx.eval(part, sums, carry)
            loss += float(part.item())
            totals.add(sums)
        norm = self._update(carry)
        mx.eval(norm, self._state)
        self.model.eval()
        return StepResult(loss, float(norm.item()), totals.means())

    def _make_room(self, arrays: Arrays) -> None:
        """Drop the traces of all shapes where one more would be too many."""
        shape = tuple(arrays[name].shape for name in sorted(arrays))
        if shape not in self._shapes and len(self._shapes) == MAX_SHAPES:
            self._gradients = self._traced(self._untraced)
            self._shapes.clear()
        self._shapes.add(shape)
