"""The optimizers, by name. Adam and AdamW are bias-corrected, as everywhere else (MLX's default is not)."""

from __future__ import annotations

from collections.abc import Callable

import mlx.optimizers as optim

from localdpo.recipe.schema import TrainSection

_TABLE: dict[str, Callable[[TrainSection], optim.Optimizer]] = {
    "adamw": lambda t: optim.AdamW(t.learning_rate, weight_decay=t.weight_decay, bias_correction=True),
    "adam": lambda t: optim.Adam(t.learning_rate, bias_correction=True),
    "sgd": lambda t: optim.SGD(t.learning_rate, weight_decay=t.weight_decay),
    "rmsprop": lambda t: optim.RMSprop(t.learning_rate, alpha=0.99),
    "lion": lambda t: optim.Lion(t.learning_rate, weight_decay=t.weight_decay),
}


def make_optimizer(train: TrainSection) -> optim.Optimizer:
    """The recipe's optimizer. RMSprop decays its squares at 0.99, as torch and the reference code do."""
    return _TABLE[train.optimizer](train)
