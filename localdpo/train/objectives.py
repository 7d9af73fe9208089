"""What a step minimises: a recipe's loss over the log-probabilities of a batch's responses.

The sum over a batch is divided by a count that is known before any of its micro-batches runs
(rows for a preference loss, scored tokens for SFT), so k micro-batches add up to the one batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, overload

import mlx.core as mx

from localdpo.data.types import Batch
from localdpo.model.forward import Arrays
from localdpo.objective.losses import preference_loss, unpaired_loss
from localdpo.objective.metrics import (
    BatchSums,
    demonstration_metrics,
    pair_metrics,
    pair_rewards,
    unpaired_metrics,
)
from localdpo.recipe.loss import LossSection


class Objective(Protocol):
    """A loss over the rows of a batch."""

    def sums(self, scores: Arrays, arrays: Arrays) -> BatchSums:
        """The metrics as sums; the numerator of `loss` is what is minimised.

        `scores` is what `Forward.scores` gives under the policy. `arrays` holds `lengths` [K*P] and, for a
        loss with a reference, the same scores under it as `reference` and, where responses are split,
        `reference_public`, [K*P] each; for unpaired rows their labels as `desirable`, bool [P], and for a
        loss that reads one the KL baseline of the whole step as the scalar `baseline`.
        """
        ...

    def margins(self, scores: Arrays, arrays: Arrays) -> mx.array | None:
        """Chosen less rejected reward of each pair [P], from what `sums` is given; None without pairs."""
        ...

    def count(self, batches: Sequence[Batch]) -> int:
        """What the sum over the micro-batches of one step is divided by."""
        ...


class Preference:
    """A preference loss over pairs."""

    def __init__(self, loss: LossSection) -> None:
        self.loss = loss

    def sums(self, scores: Arrays, arrays: Arrays) -> BatchSums:
        chosen, rejected = _halves(scores["logps"])
        chosen_tokens, rejected_tokens = _halves(arrays["lengths"])
        ref_chosen, ref_rejected = _halves(arrays.get("reference"))
        public = (*_halves(scores.get("public")), *_halves(arrays.get("reference_public")))
        losses = preference_loss(
            self.loss.type,
            chosen,
            rejected,
            ref_chosen,
            ref_rejected,
            chosen_tokens=chosen_tokens,
            rejected_tokens=rejected_tokens,
            public=public,
            alignment=_halves(scores.get("alignment")),
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

    def margins(self, scores: Arrays, arrays: Arrays) -> mx.array:
        tokens = _halves(arrays["lengths"])
        chosen, rejected = pair_rewards(
            *_halves(scores["logps"]),
            *_halves(arrays.get("reference")),
            self.loss.beta,
            chosen_tokens=tokens[0],
            rejected_tokens=tokens[1],
        )
        return chosen - rejected

    def count(self, batches: Sequence[Batch]) -> int:
        return sum(len(batch.indices) for batch in batches)


class Unpaired:
    """A loss over single responses with a label."""

    def __init__(self, loss: LossSection) -> None:
        self.loss = loss

    def sums(self, scores: Arrays, arrays: Arrays) -> BatchSums:
        policy, reference, desirable = scores["logps"], arrays["reference"], arrays["desirable"]
        baseline = arrays.get("baseline")
        losses = unpaired_loss(
            self.loss.type,
            policy,
            reference,
            desirable,
            baseline=baseline,
            weights=self.loss.weights,
            **self.loss.options,
        )
        return unpaired_metrics(
            policy,
            reference,
            self.loss.beta,
            losses=losses,
            desirable=desirable,
            tokens=arrays["lengths"],
            baseline=baseline,
        )

    def margins(self, scores: Arrays, arrays: Arrays) -> None:
        return None

    def count(self, batches: Sequence[Batch]) -> int:
        return sum(len(batch.indices) for batch in batches)


class Imitation:
    """Negative log-likelihood of demonstrations."""

    def sums(self, scores: Arrays, arrays: Arrays) -> BatchSums:
        return demonstration_metrics(scores["logps"], arrays["lengths"])

    def margins(self, scores: Arrays, arrays: Arrays) -> None:
        return None

    def count(self, batches: Sequence[Batch]) -> int:
        return sum(int(batch.lengths.sum()) for batch in batches)


@overload
def _halves(rows: mx.array) -> tuple[mx.array, mx.array]: ...
@overload
def _halves(rows: mx.array | None) -> tuple[mx.array | None, mx.array | None]: ...
def _halves(rows: mx.array | None) -> tuple[mx.array | None, mx.array | None]:
    """(chosen, rejected) of an array [2*P], and of none, none."""
    if rows is None:
        return None, None
    pairs = rows.shape[0] // 2
    return rows[:pairs], rows[pairs:]


def label_arrays(batch: Batch) -> dict[str, mx.array]:
    """The labels of unpaired rows by the name that an objective takes them under; nothing for other rows."""
    return {} if batch.desirable is None else {"desirable": mx.array(batch.desirable)}


def make_objective(loss: LossSection) -> Objective:
    """The objective of a recipe."""
    if loss.spec.data == "demonstrations":
        return Imitation()
    return Preference(loss) if loss.spec.data == "pairs" else Unpaired(loss)
