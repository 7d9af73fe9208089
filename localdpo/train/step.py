"""One optimizer step: forward, backward, clip and update, traced by MLX as one function.

A batch that fits in memory is one call. A larger one is several micro-batches: each call adds its
gradients to those it is handed, and the last one clips and updates. Shapes are bucketed, so few
traces are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map

from localdpo.model.forward import Arrays, Forward
from localdpo.objective.metrics import BatchSums, Sums
from localdpo.train.objectives import Objective


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
    """The compiled step of a model with a forward pass, an objective and an optimizer."""

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
        optimizer.init(self.model.trainable_parameters())
        self._state = [self.model.state, optimizer.state, mx.random.state]

        def total(arrays: Arrays) -> tuple[mx.array, BatchSums]:
            sums = objective.sums(forward.scores(arrays, gradient=True), arrays)
            return sums["loss"][0] / arrays["count"], sums

        value_and_grad = nn.value_and_grad(self.model, total)

        def gradients(arrays: Arrays, carry: Any) -> tuple[mx.array, BatchSums, Any]:
            (loss, sums), grads = value_and_grad(arrays)
            return loss, sums, grads if carry is None else tree_map(mx.add, carry, grads)

        def finish(arrays: Arrays, carry: Any) -> tuple[mx.array, BatchSums, mx.array]:
            loss, sums, grads = gradients(arrays, carry)
            clipped, norm = optim.clip_grad_norm(grads, max_grad_norm)
            optimizer.update(self.model, clipped)
            return loss, sums, norm

        self._gradients: Callable[..., Any] = gradients
        self._finish: Callable[..., Any] = finish
        if compiled:
            traced = partial(mx.compile, inputs=self._state, outputs=self._state)
            self._gradients, self._finish = traced(gradients), traced(finish)

    def __call__(self, micro_batches: Sequence[Arrays], learning_rate: float) -> StepResult:
        """Take one step over the micro-batches of a batch; each holds `count`, the batch's denominator."""
        self.optimizer.learning_rate = learning_rate
        self.model.train()
        totals, loss, carry = Sums(), 0.0, None
        for arrays in micro_batches[:-1]:
            part, sums, carry = self._gradients(arrays, carry)
            mx.eval(part, sums, carry)
            loss += float(part.item())
            totals.add(sums)
        part, sums, norm = self._finish(micro_batches[-1], carry)
        mx.eval(part, sums, norm, self._state)
        self.model.eval()
        totals.add(sums)
        return StepResult(loss + float(part.item()), float(norm.item()), totals.means())
