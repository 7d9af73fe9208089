"""The optimizers against their papers' formulas, written down in NumPy float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from localdpo.recipe.schema import TrainSection
from localdpo.train.step import make_optimizer

RATES = [1e-2, 3e-2, 2e-2]
DECAY = 0.1


def adam(w: np.ndarray, gradients: list[np.ndarray], decay: float) -> np.ndarray:
    """Kingma and Ba 2015, algorithm 1; decay decoupled as in Loshchilov and Hutter 2019."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (rate, g) in enumerate(zip(RATES, gradients, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        update = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        w = w - rate * (update + decay * w)
    return w


def rmsprop(w: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """torch's RMSprop: squares decay at 0.99."""
    v = np.zeros_like(w)
    for rate, g in zip(RATES, gradients, strict=True):
        v = 0.99 * v + 0.01 * g * g
        w = w - rate * g / (np.sqrt(v) + 1e-8)
    return w


def sgd(w: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    for rate, g in zip(RATES, gradients, strict=True):
        w = w - rate * (g + DECAY * w)
    return w


def lion(w: np.ndarray, gradients: list[np.ndarray]) -> np.ndarray:
    """Chen et al. 2023, algorithm 2, betas 0.9 and 0.99."""
    m = np.zeros_like(w)
    for rate, g in zip(RATES, gradients, strict=True):
        w = w - rate * (np.sign(0.9 * m + 0.1 * g) + DECAY * w)
        m = 0.99 * m + 0.01 * g
    return w


ORACLES: dict[str, tuple[dict[str, Any], Callable[..., np.ndarray]]] = {
    "adam": ({}, lambda w, g: adam(w, g, 0.0)),
    "adamw": ({"weight_decay": DECAY}, lambda w, g: adam(w, g, DECAY)),
    "rmsprop": ({}, rmsprop),
    "sgd": ({"weight_decay": DECAY}, sgd),
    "lion": ({"weight_decay": DECAY}, lion),
}


@pytest.mark.parametrize("name", ORACLES)
def test_three_steps_equal_the_formula(name: str) -> None:
    options, oracle = ORACLES[name]
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(4, 3))
    gradients = [rng.normal(size=(4, 3)) * scale for scale in (1.0, 0.1, 3.0)]
    optimizer = make_optimizer(TrainSection(optimizer=name, learning_rate=1e-2, **options))
    tree = {"w": mx.array(weights.astype(np.float32))}
    for rate, g in zip(RATES, gradients, strict=True):
        optimizer.learning_rate = rate
        tree = optimizer.apply_gradients({"w": mx.array(g.astype(np.float32))}, tree)
    np.testing.assert_allclose(np.array(tree["w"]), oracle(weights, gradients), rtol=1e-5, atol=1e-6)


def test_the_first_step_of_adam_is_the_learning_rate() -> None:
    """Without bias correction it would be about three times as long."""
    optimizer = make_optimizer(TrainSection(optimizer="adamw", learning_rate=1e-3))
    moved = optimizer.apply_gradients({"w": mx.array([0.5])}, {"w": mx.array([0.0])})
    assert moved["w"].item() == pytest.approx(-1e-3, rel=1e-4)
