"""A reference that follows the policy (TR-DPO): its adapter moves, so its scores are computed live.

Gorbatovski et al. 2024, arXiv 2404.09656: after every `every` steps

    reference <- alpha * policy + (1 - alpha) * reference

over the adapter weights, the soft update for alpha < 1 and the hard one for alpha = 1. The base is the
same for both, so nothing else differs between them. What is averaged are the adapter's factors, not the
products that they stand for.
"""

from __future__ import annotations

import mlx.core as mx
from mlx.utils import tree_map

from localdpo.data.types import Batch
from localdpo.model import lora
from localdpo.model.forward import Forward
from localdpo.recipe.loss import LossSection
from localdpo.train.reference import reference_arrays


class MovingReference:
    """The reference's adapter weights, which start as the policy's do.

    Attributes:
        weights: the reference's adapter now; a checkpoint keeps it.
    """

    def __init__(self, forward: Forward, start: lora.Weights, *, every: int, alpha: float) -> None:
        self._forward, self._every, self._alpha = forward, every, alpha
        self.weights = start

    def arrays(self, batch: Batch) -> dict[str, mx.array]:
        """Scores of a batch under the reference as it is now, named as an objective takes them."""
        with lora.use(self._forward.model, self.weights):
            return reference_arrays(self._forward.measure(batch))

    def after_step(self, step: int) -> None:
        """Move the reference if `step` steps are a whole number of periods."""
        if step % self._every != 0:
            return
        policy = lora.adapter_weights(self._forward.model)
        self.weights = tree_map(self._mixed, self.weights, policy)
        mx.eval(self.weights)

    def _mixed(self, reference: mx.array, policy: mx.array) -> mx.array:
        return self._alpha * policy + (1.0 - self._alpha) * reference


def moving_reference(loss: LossSection, forward: Forward) -> MovingReference | None:
    """The reference that follows the policy, starting from the weights in the model; None without sync."""
    if loss.sync_every is None:
        return None
    start = lora.adapter_weights(forward.model)
    return MovingReference(forward, start, every=loss.sync_every, alpha=loss.sync_alpha)
