"""What a step minimises: a recipe's loss over the log-probabilities of a batch's responses.

The sum over a batch is divided by a count that is known before any of its micro-batches runs
(pairs for a preference loss, scored tokens for SFT), so k micro-batches add up to the one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx

from localdpo.data.types import Batch
from localdpo.model.forward import Arrays
from localdpo.objective.losses import preference_loss
from localdpo.objective.metrics import BatchSums, demonstration_metrics, pair_metrics
from localdpo.recipe.loss import LossSection


class Objective(Protocol):
    """A loss over the rows of a batch."""

    def sums(self, logps: mx.array, arrays: Arrays) -> BatchSums:
        """The metrics as sums; the numerator of `loss` is what is minimised. `logps` [K*P] in nats.

        `arrays` holds `lengths` [K*P] and, for a loss with a reference, its scores as `reference` [K*P].
        """
        ...

    def count(self, batches: Sequence[Batch]) -> int:
        """What the sum over the micro-batches of one step is divided by."""
        ...


class Preference:
    """A preference loss over pairs."""

    def __init__(self, loss: LossSection) -> None:
        self.loss = loss

    def sums(self, logps: mx.array, arrays: Arrays) -> BatchSums:
        pairs = logps.shape[0] // 2
        chosen, rejected = logps[:pairs], logps[pairs:]
        chosen_tokens, rejected_tokens = arrays["lengths"][:pairs], arrays["lengths"][pairs:]
        reference = arrays.get("reference")
        ref_chosen = None if reference is None else reference[:pairs]
        ref_rejected = None if reference is None else reference[pairs:]
        losses = preference_loss(
            self.loss.type,
            chosen,
            rejected,
            ref_chosen,
            ref_rejected,
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
            weights=self.loss.weights,
            **self.loss.options,
        )
        return pair_metrics(
            chosen,
            rejected,
            ref_chosen,
            ref_rejected,
            self.loss.beta,
            losses=losses,
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
        )

    def count(self, batches: Sequence[Batch]) -> int:
        return sum(len(batch.indices) for batch in batches)


class Imitation:
    """Negative log-likelihood of demonstrations."""

    def sums(self, logps: mx.array, arrays: Arrays) -> BatchSums:
        return demonstration_metrics(logps, arrays["lengths"])

    def count(self, batches: Sequence[Batch]) -> int:
        return sum(int(batch.lengths.sum()) for batch in batches)


def make_objective(loss: LossSection) -> Objective:
    """The objective of a recipe."""
    return Preference(loss) if loss.spec.data == "pairs" else Imitation()
