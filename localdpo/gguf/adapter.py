"""LoRA adapters as GGUF files, written and read.

The tensors of a projection are `NAME.weight.lora_a` [rank, in] and `NAME.weight.lora_b` [out, rank], after
the name of the projection in the model's file; the rows of lora_b are in the order of the projection's.
llama.cpp adds alpha / rank * B A x (llama-adapter.cpp), where mlx-lm adds scale * (x a) b.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np

from localdpo.core.errors import UserError, UserErrors
from localdpo.gguf import blocks, families
from localdpo.gguf.export import GGUFModel, as_numpy, family_for, vector
from localdpo.gguf.file import GGUFFile, package

_HERE: Final = re.compile(r"(?:model\.layers\.(?P<block>\d+)\.)?(?P<layer>.+)\.(?P<part>lora_[ab])")
_THERE: Final = re.compile(r"(?:blk\.(?P<block>\d+)\.)?(?P<layer>\w+)\.weight\.(?P<part>lora_[ab])")


def lora_adapter(
    config: Mapping[str, Any], adapter: Mapping[str, mx.array], *, scale: float, name: str
) -> GGUFModel:
    """A LoRA adapter as a GGUF file, for llama.cpp's --lora and Ollama's ADAPTER.

    Args:
        config: config.json of the base.
        adapter: lora_a [in, rank] and lora_b [rank, out] by mlx-lm's names.
        name: general.name.

    Raises:
        UserError, UserErrors: an array has no place in such a file (DoRA, embeddings); the package gguf is
            not installed.
    """
    package()
    family, config = family_for(config), _complete(config)
    names = {inside: layer for layer, (inside, _) in _layers(family).items()}
    entries, problems, ranks = [], [], set()
    for key in sorted(adapter):
        match = _HERE.fullmatch(key)
        layer = names.get(match["layer"]) if match else None
        if match is None or layer is None or adapter[key].ndim != 2:
            problems.append(
                f"{key}: has no place in a GGUF adapter: expected lora_a or lora_b of a projection"
            )
            continue
        is_b = match["part"] == "lora_b"
        order = families.row_order(family, config, layer, write=True) if is_b else None
        turned = np.ascontiguousarray(as_numpy(adapter[key]).T)
        ranks.add(turned.shape[1 if is_b else 0])
        prefix = f"blk.{match['block']}." if match["block"] else ""
        turned = turned if order is None else turned[order]
        entries.append(vector(f"{prefix}{layer}.weight.{match['part']}", turned))
    if len(ranks) > 1:
        problems.append(f"a GGUF adapter has one rank, this one {', '.join(map(str, sorted(ranks)))}")
    if problems:
        raise UserErrors([UserError(problem) for problem in problems[:10]])
    metadata = {
        "general.type": "adapter",
        "general.name": name,
        "adapter.type": "lora",
        "adapter.lora.alpha": float(scale * ranks.pop()),
    }
    return GGUFModel(family.name, metadata, tuple(entries))


def read_lora(path: Path, config: Mapping[str, Any]) -> tuple[dict[str, mx.array], float]:
    """The arrays of an adapter by mlx-lm's names, and its scale.

    Raises:
        UserError: the file is no LoRA adapter of a model with this config.json.
    """
    file = GGUFFile(path)
    family, config = family_for(config), _complete(config)
    if file.value("general.architecture", str) != family.name or file.value("adapter.type", str) != "lora":
        raise UserError(f"{path}: expected a LoRA adapter of {family.name}")
    layers, weights, rank = _layers(family), {}, 0
    for name, tensor in file.tensors.items():
        match = _THERE.fullmatch(name)
        if match is None or match["layer"] not in layers or len(tensor.shape) != 2:
            raise UserError(f"{path}: tensor {name} has no place in an adapter of {family.name}")
        is_b = match["part"] == "lora_b"
        rank = tensor.shape[1 if is_b else 0]
        array = blocks.dense(file.bytes_of(tensor), tensor.kind, tensor.shape)
        order = families.row_order(family, config, match["layer"], write=False) if is_b else None
        if order is not None:
            array = array[mx.array(order)]
        prefix = f"model.layers.{match['block']}." if match["block"] else ""
        weights[f"{prefix}{layers[match['layer']][0]}.{match['part']}"] = mx.contiguous(array.T)
    if not rank:
        raise UserError(f"{path}: an adapter without tensors")
    return weights, file.value("adapter.lora.alpha", float) / rank


def _layers(family: families.Architecture) -> families.Layers:
    """The layers that an adapter may have: projections, and an output head of its own."""
    return {"output": families.TOP["output"], **family.layers}


def _complete(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    return {**config, "head_dim": families.head_dim(config), "num_key_value_heads": heads}
