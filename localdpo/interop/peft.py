"""Adapters in PEFT's layout: adapter_config.json and adapter_model.safetensors, read and written.

mlx-lm computes x A B with A [in, r] and B [r, out], times `scale`; PEFT keeps the transposes, A [r, in] and
B [out, r], and multiplies by lora_alpha / r. DoRA's magnitude is the same vector in both.

What one of the two cannot say is refused in words: stacked experts, an embedding that is the output head too,
trained biases, ranks that differ from layer to layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear

from localdpo.core.errors import UserError, UserErrors
from localdpo.core.text import is_number
from localdpo.model import lora
from localdpo.model.arrays import is_finite, load_arrays
from localdpo.model.load import read_json_object

WEIGHTS: Final = lora.PEFT_FILES[0]
_PREFIX: Final = "base_model.model."
# What comes after the layer's name in that of a tensor: of A and of B, and of DoRA's magnitude.
_LINEAR: Final = ("lora_A.weight", "lora_B.weight")
_EMBEDDING: Final = ("lora_embedding_A", "lora_embedding_B")
_MAGNITUDE: Final = "lora_magnitude_vector"
# The parameter of mlx-lm by that end.
_PARAMETERS: Final = {
    **dict(zip(_LINEAR, ("lora_a", "lora_b"), strict=True)),
    **dict(zip(_EMBEDDING, ("lora_a", "lora_b"), strict=True)),
    _MAGNITUDE: "m",
}
# Options of PEFT's LoraConfig that change what an adapter computes, and for which mlx-lm has no word.
_FOREIGN: Final = (
    *("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "lora_bias"),
    *("modules_to_save", "monteclora_config", "target_parameters", "trainable_token_indices"),
    *("use_bdlora", "use_qalora", "velora_config"),
)
# Values of init_lora_weights (the beginning of them) with which PEFT changes the weights of the base, too: it
# subtracts what the adapter starts with, or quantises them. Such an adapter is not one of the original base.
_OTHER_BASES: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")


# --- writing -------------------------------------------------------------------------------------------


def to_peft(
    model: nn.Module, shape: lora.LoraConfig, base: str
) -> tuple[dict[str, Any], dict[str, mx.array]]:
    """The config and the tensors of the adapter on `model`; `base` is the name of the model it belongs to.

    PEFT finds layers by their names in transformers, which must be mlx-lm's (`require_same_names`).
    Raises UserErrors for what PEFT has no place for.
    """
    layers = {name: module for name, module in model.named_modules() if "lora_a" in module}
    if problems := [
        UserError(f"{name}: {why}") for name, m in layers.items() if (why := _no_place(model, m))
    ]:
        raise UserErrors(problems)
    tensors: dict[str, mx.array] = {}
    for name, module in layers.items():
        parts = _EMBEDDING if "embedding" in module else _LINEAR
        for part, matrix in zip(parts, (module.lora_a, module.lora_b), strict=True):
            tensors[f"{_PREFIX}{name}.{part}"] = mx.contiguous(matrix.T)
        if isinstance(module, DoRALinear):
            tensors[f"{_PREFIX}{name}.{_MAGNITUDE}"] = module.m
    alpha = shape.scale * shape.rank
    # PEFT finds layers by the ends of their names where those are all adapted, else by their whole names.
    ends = {name.rpartition(".")[2] for name in layers}
    others = {name for name, m in model.named_modules() if "weight" in m and name.rpartition(".")[2] in ends}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": shape.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": shape.dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": shape.type == "dora",
        "use_rslora": False,
        "target_modules": sorted(ends if not others - layers.keys() else layers),
    }
    return config, tensors


def _no_place(model: nn.Module, module: nn.Module) -> str | None:
    """Why PEFT has no place for this adapter; None where it has."""
    if isinstance(module, LoRASwitchLinear):
        return "PEFT has no adapter for stacked experts; export --to mlx, or train without them (lora.keys)"
    if isinstance(module, DoRAEmbedding):
        return "PEFT's DoRA of an embedding is another one; export --to mlx"
    if isinstance(module, LoRAEmbedding) and not any(name == "lm_head" for name, _ in model.named_modules()):
        return "this embedding is the output head, too, and PEFT would adapt the input alone; export --to mlx"
    if not isinstance(module, LoRALinear | DoRALinear | LoRAEmbedding):
        return f"PEFT has no adapter for this layer ({type(module).__name__}); export --to mlx"
    return None


# --- reading -------------------------------------------------------------------------------------------


def is_peft(folder: Path) -> bool:
    """Whether this is the folder of an adapter in PEFT's layout."""
    return any((folder / file).is_file() for file in lora.PEFT_FILES)


def from_peft(folder: Path, model: nn.Module) -> tuple[lora.LoraConfig, dict[str, mx.array]]:
    """The shape and the weights of the adapter in a PEFT folder, as mlx-lm has them, for this model.

    Raises UserError(s): it cannot be read, computes what mlx-lm's adapters cannot, or is of another model.
    """
    file = folder / lora.CONFIG_FILE
    raw = read_json_object(file)
    if not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder}: no {WEIGHTS} in this folder; load the adapter with PEFT and save it again, which "
            "writes one"
        )
    rank, scale, dropout, is_dora = _read_config(file, raw)
    tensors = load_arrays(folder / WEIGHTS)
    weights: dict[str, mx.array] = {}
    problems = []
    layers = {name for name, module in model.named_modules() if lora.takes_adapter(module)}
    adapted: dict[str, None] = {}
    for name, array in tensors.items():
        layer, parameter = _parse(name)
        if parameter == "":
            problems.append(f"{name}: expected a LoRA tensor, as {_PREFIX}LAYER.lora_A.weight")
        elif layer not in layers:
            problems.append(f"{name}: the model has no layer {layer} that takes an adapter")
        elif array.ndim != (1 if parameter == "m" else 2):
            problems.append(f"{name}: expected a matrix (DoRA's magnitude: a vector), got {array.shape}")
        elif not is_finite(array):
            problems.append(f"{name}: expected finite floating-point numbers")
        elif parameter == "lora_a" and array.shape[0] != rank:
            problems.append(
                f"{name}: rank {array.shape[0]}, and the adapter's is {rank}; mlx-lm has one rank for all "
                "layers"
            )
        else:
            adapted[layer] = None
            weights[f"{layer}.{parameter}"] = array if parameter == "m" else mx.contiguous(array.T)
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserErrors([UserError(f"{folder / WEIGHTS}: {line}{more}") for line in problems[:3]])
    if not weights:
        raise UserError(f"{folder / WEIGHTS}: there is no tensor in it")
    layers_count, keys = _where(model, adapted)
    shape = lora.LoraConfig("dora" if is_dora else "lora", layers_count, rank, scale, dropout, keys)
    return shape, weights


def _read_config(file: Path, raw: Mapping[str, Any]) -> tuple[int, float, float, bool]:
    """Rank, scale, dropout, and whether it is DoRA."""
    problems = []
    if raw.get("peft_type") != "LORA":
        problems.append(f"peft_type: expected LORA, got {raw.get('peft_type')}")
    if raw.get("bias", "none") != "none":
        problems.append(f"bias: expected none, got {raw['bias']}: mlx-lm's adapters have no biases")
    problems += [f"{name}: mlx-lm's adapters have nothing like it" for name in _FOREIGN if raw.get(name)]
    pattern = raw.get("alpha_pattern") or {}
    if not isinstance(pattern, dict) or any(alpha != raw.get("lora_alpha") for alpha in pattern.values()):
        problems.append("alpha_pattern: mlx-lm has one scale for all layers")
    start = str(raw.get("init_lora_weights")).lower()
    if start.startswith(_OTHER_BASES):
        problems.append(
            f"init_lora_weights: {start} changes the base, too, and this adapter belongs to the changed one; "
            "let PEFT convert it (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    rank: Any = raw.get("r")
    alpha: Any = raw.get("lora_alpha")
    dropout: Any = raw.get("lora_dropout", 0.0)
    if not (is_number(rank) and isinstance(rank, int) and 1 <= rank <= lora.MOST_RANK):
        problems.append(f"r: expected a whole number, 1 or more, got {rank}")
    if not (is_number(alpha) and math.isfinite(alpha)):
        problems.append(f"lora_alpha: expected a number, got {alpha}")
    if not (is_number(dropout) and 0 <= dropout < 1):
        problems.append(f"lora_dropout: expected a number from 0 to below 1, got {dropout}")
    if problems:
        raise UserErrors([UserError(f"{file} {problem}") for problem in problems])
    scale = alpha / math.sqrt(rank) if raw.get("use_rslora") else alpha / rank
    return rank, scale, float(dropout), bool(raw.get("use_dora"))


def _parse(name: str) -> tuple[str, str]:
    """The layer that a tensor belongs to, and its name in mlx-lm; two empty texts for another tensor."""
    for end, parameter in _PARAMETERS.items():
        if name.startswith(_PREFIX) and name.endswith(f".{end}"):
            return name[len(_PREFIX) : -len(end) - 1], parameter
    return "", ""


def _where(model: nn.Module, adapted: Iterable[str]) -> tuple[int, tuple[str, ...] | None]:
    """`num_layers` and `keys` with which mlx-lm adapts just these layers.

    Mostly they are the same ones of the last blocks; else each is a key by its whole name.
    """
    wanted = set(adapted)
    names = {id(module): name for name, module in model.named_modules()}
    # Of each block: the layers that take an adapter, by their name in it, and whether they have one.
    blocks = [
        {
            key: names[id(module)] in wanted
            for key, module in block.named_modules()
            if lora.takes_adapter(module)
        }
        for block in model.layers
    ]
    keys = {key for block in blocks for key, is_adapted in block.items() if is_adapted}
    count = sum(any(block.values()) for block in blocks)
    last = blocks[-count:] if count else []
    inside = {
        f"{names[id(block)]}.{key}" for block in model.layers for key, _ in block.named_modules() if key
    }
    outside = sorted(wanted - inside)
    if count and all(block.get(key, True) for block in last for key in keys):
        layers = -1 if count == len(blocks) else count
        is_every = not outside and all(all(block.values()) for block in last)
        return layers, None if is_every else (*sorted(keys), *outside)
    return -1, tuple(sorted(wanted))
