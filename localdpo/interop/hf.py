"""Whole models: for mlx-lm, with merged layers quantised, and for transformers, dense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from localdpo.core.errors import UserError
from localdpo.interop import fuse
from localdpo.interop.trained import Trained
from localdpo.model.arrays import named


@dataclass(frozen=True)
class ModelWeights:
    """A whole model that is to be written, not evaluated yet."""

    config: dict[str, Any]
    weights: dict[str, mx.array]


def merged(trained: Trained, bits: int | None, *, dequantise: bool) -> ModelWeights:
    """The run's model with its adapter merged.

    `bits`: of merged layers whose base is quantised (8 unless given); others stay as they were. `dequantise`:
    every layer is dense, in 16 bits for a base whose scales are.

    Raises UserError for `bits` where nothing is quantised.
    """
    model, config = trained.load()
    if bits is not None and "quantization" not in config:
        raise UserError(
            f"--bits {bits}: the base {trained.recipe.model} is not quantised, and neither is the export; "
            "leave --bits out (mlx_lm.convert -q quantises what is exported)"
        )
    quantisation = fuse.fuse(model, None if dequantise else bits or fuse.DEFAULT_BITS)
    if dequantise:
        fuse.dequantise(model)
        config = without_quantisation(config)
    elif "quantization" in config:
        config = {**config, "quantization": {**config["quantization"], **quantisation}}
    return ModelWeights(config, named(model.parameters()))


def without_quantisation(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json of dense weights."""
    return {key: value for key, value in config.items() if key not in ("quantization", "quantization_config")}
