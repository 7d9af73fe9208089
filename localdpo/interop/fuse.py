"""An adapter merged into the weights of its base.

A small change disappears when the sum is rounded to the base's own 4 bits: the steps of such a layer are
larger than what an adapter of a few steps changes. The sum is therefore computed in float32 and rounded once,
at 8 bits unless something else is asked for.
"""

from __future__ import annotations

from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear
from mlx_lm.utils import dequantize_model

from localdpo.core.errors import UserError
from localdpo.interop.trained import Trained
from localdpo.model.arrays import named
from localdpo.model.load import dense_layer

ADAPTERS: Final = (LoRALinear, LoRASwitchLinear, LoRAEmbedding, DoRALinear, DoRAEmbedding)
BITS: Final = (2, 3, 4, 5, 6, 8)
DEFAULT_BITS: Final = 8
_QUANTISED: Final = (nn.QuantizedLinear, nn.QuantizedEmbedding, QuantizedSwitchLinear)
# Where config.json says how weights are quantised.
QUANTISATION: Final = ("quantization", "quantization_config")
_ADAPTED_ENDS: Final = ("lora_a", "lora_b", ".m")
# Groups that MLX quantises in; the others are those of formats that have no scale and bias a group.
_GROUPS: Final = (32, 64, 128)


def merged(
    trained: Trained, bits: int | None, *, dequantise: bool
) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """config.json and weights of the run's model with its adapter merged; these are not evaluated yet.

    `bits`: of merged layers whose base is quantised (8 unless given); others stay as they were. `dequantise`:
    every layer is dense, in 16 bits for a base whose scales are.

    Raises UserError for `bits` where nothing is quantised.
    """
    model, config = trained.load()
    require_quantised(trained, config, bits)
    quantisation = fuse(model, None if dequantise else bits or DEFAULT_BITS)
    if dequantise:
        dequantize_model(model)
        config = {key: value for key, value in config.items() if key not in QUANTISATION}
    elif "quantization" in config:
        config = {**config, "quantization": {**config["quantization"], **quantisation}}
    return config, named(model.parameters())


def require_quantised(trained: Trained, config: dict[str, Any], bits: int | None) -> None:
    """Raise UserError for `bits` of a base that is not quantised."""
    if bits is not None and "quantization" not in config:
        raise UserError(
            f"--bits {bits}: the base {trained.recipe.model} is not quantised, and neither is the export; "
            "leave --bits out (mlx_lm.convert -q quantises what is exported)"
        )


def on_quantised(model: nn.Module) -> list[str]:
    """Names of the layers that are quantised and have an adapter."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, ADAPTERS)
        and isinstance(module["embedding" if "embedding" in module else "linear"], _QUANTISED)
    ]


def fuse(model: nn.Module, bits: int | None) -> dict[str, dict[str, Any]]:
    """Merge the adapters of a model into its layers, in place; nothing is evaluated.

    `bits`: of merged layers whose base is quantised; None leaves those dense, in the type of the base's
    scales. Returns the quantisation of every merged layer that has one, as config.json names it.

    Raises UserError: a kind of adapter that cannot be merged.
    """
    # The floating-point type of the model's own weights, whatever that of its adapters.
    own = [array for name, array in named(model.parameters()).items() if not name.endswith(_ADAPTED_ENDS)]
    usual = next((array.dtype for array in own if mx.issubdtype(array.dtype, mx.floating)), mx.bfloat16)
    merged: list[tuple[str, nn.Module]] = []
    quantisation: dict[str, dict[str, Any]] = {}
    for name, module in model.named_modules():
        if not isinstance(module, ADAPTERS):
            continue
        inner = "embedding" if "embedding" in module else "linear"
        base = module[inner]
        # The type of a layer's numbers: that of its scales where it is quantised, if they are numbers.
        dtype = base.scales.dtype if isinstance(base, _QUANTISED) else base.weight.dtype
        dtype = dtype if mx.issubdtype(dtype, mx.floating) else usual
        if (dense := dense_layer(base)) is None:
            base.set_dtype(mx.float32)
        module[inner] = base if dense is None else dense
        # mlx-lm's own sum, which rounds to the type of the layer: float32 here.
        layer = module.fuse(dequantize=True)
        if bits is not None and isinstance(base, _QUANTISED):
            group = base.group_size if base.group_size in _GROUPS else min(_GROUPS)
            quantisation[name] = {"group_size": group, "bits": bits, "mode": "affine"}
            layer = layer.to_quantized(**quantisation[name])
        layer.set_dtype(dtype)
        merged.append((name, layer))
    model.update_modules(tree_unflatten(merged))
    if left := [name for name in named(model.parameters()) if name.endswith(("lora_a", "lora_b"))]:
        raise UserError(f"{left[0]}: this kind of layer cannot be merged with its adapter; export --to peft")
    return quantisation
