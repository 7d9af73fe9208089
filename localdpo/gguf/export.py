"""Writing GGUF files: whole models and adapters, with the `gguf` package.

A matrix that MLX has quantised is written as Q4_0, Q4_1 or Q8_0 where one of them holds its numbers exactly:
4 bits do if float16 holds their scales, since a group of 64 or 128 is two or four groups of 32 with the same
scale. Others are written as 16-bit numbers. Vectors (norms, biases) are F32, as llama.cpp wants them.

LoRA adapters are read back too. The tensors of a projection are `NAME.weight.lora_a` [rank, in] and
`NAME.weight.lora_b` [out, rank], after the name of the projection in the model's file; the rows of lora_b are
in the order of the projection's. llama.cpp adds alpha / rank * B A x (llama-adapter.cpp), where mlx-lm adds
scale * (x a) b.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np

from localdpo.core.errors import UserError, UserErrors
from localdpo.core.text import counted
from localdpo.gguf import blocks, families
from localdpo.gguf.blocks import GROUP, Packed
from localdpo.gguf.families import FAMILIES, Architecture, NamedTensor
from localdpo.gguf.file import BF16, F16, F32, Q4_1, Q8_0, GGUFFile, block_of, package
from localdpo.gguf.tokenizer import ENDS, tokenizer_metadata

# llama.cpp's number for a file whose tensors are of several types, "all F32" aside (general.file_type).
_FILE_TYPES: Final = {F32: 0, F16: 1, 2: 2, Q4_1: 3, Q8_0: 7, BF16: 32}
_QUANTISATION_VERSION: Final = 2


@dataclass(frozen=True)
class Entry:
    """A tensor of a file that is to be written: its rows are made when their turn comes."""

    name: str
    kind: int
    shape: tuple[int, ...]
    rows: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        numbers, size = block_of(self.kind)
        return int(np.prod(self.shape)) // numbers * size


@dataclass(frozen=True)
class GGUFModel:
    """A file that is to be written.

    Attributes:
        size: bytes that it takes, about.
        notes: lines that a person should read.
    """

    arch: str
    metadata: Mapping[str, Any]
    entries: tuple[Entry, ...]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return sum(entry.size for entry in self.entries)

    def write(self, path: Path) -> None:
        """Write the file; one tensor is in memory at a time."""
        gguf = package()
        writer = gguf.GGUFWriter(path, self.arch)
        # The types that llama.cpp expects: 32 bits for numbers.
        kinds = {bool: "bool", int: "uint32", float: "float32", str: "string", list: "array"}
        for key, value in self.metadata.items():
            getattr(writer, f"add_{kinds[type(value)]}")(key, value)
        for entry in self.entries:
            kind = gguf.GGMLQuantizationType(entry.kind)
            is_bytes = entry.kind in blocks.BITS or entry.kind == BF16
            shape = gguf.quant_shape_to_byte_shape(entry.shape, kind) if is_bytes else entry.shape
            writer.add_tensor_info(
                entry.name, shape, np.dtype("u1" if is_bytes else "f4"), entry.size, raw_dtype=kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for entry in self.entries:
            writer.write_tensor_data(np.ascontiguousarray(entry.rows()))
        writer.close()


# --- whole models --------------------------------------------------------------------------------------


def whole_model(
    config: Mapping[str, Any],
    weights: Mapping[str, mx.array],
    tokenizer: Path,
    *,
    name: str,
    quantise: Mapping[str, int] | None = None,
) -> GGUFModel:
    """A model as a GGUF file.

    Args:
        config: its config.json; weights: by mlx-lm's names, quantised layers with `scales` and `biases`.
        tokenizer: the folder that its tokenizer is in.
        name: general.name.
        quantise: layers that are not quantised, and shall be: as Q8_0 or Q4_1.

    Raises UserError(s): the architecture, the tokenizer or a tensor has no place in a GGUF file; the package
    gguf is not installed.
    """
    package()
    family = family_for(config)
    config = _complete(config, weights)
    expected = list(families.items(family, config))
    # Every array must have a place, and every place an array.
    known = {item.mlx for item in expected}
    extra = sorted(name for name in weights if re.sub(r"\.(scales|biases)$", ".weight", name) not in known)
    problems = [f"{name} has no place in a GGUF file" for name in extra]
    problems += [f"{name} is missing" for name in sorted(known - weights.keys())]
    if problems:
        raise UserErrors([UserError(problem) for problem in problems[:10]])
    rope, factors = _rope(family.name, config)
    entries = [_model_entry(item, family, config, weights, quantise or {}) for item in expected]
    entries += [vector(key, value) for key, value in factors.items()]
    kinds = [entry.kind for entry in entries if len(entry.shape) == 2]
    quantised = {item.gguf for item in expected if f"{item.mlx.removesuffix('.weight')}.scales" in weights}
    notes = []
    if wide := [entry for entry in entries if entry.name in quantised and entry.kind in (F16, BF16)]:
        notes.append(
            f"{len(wide)} quantised matrices are written in 16 bits, since no type of GGUF holds their "
            f"numbers (the first is {wide[0].name})"
        )
    tokens = tokenizer_metadata(tokenizer, config, rows=config["vocab_size"])
    named = config.get("eos_token_id")
    written = {tokens.get(f"tokenizer.ggml.{key}") for key in ENDS}
    if left := [number for number in (named if isinstance(named, list) else []) if number not in written]:
        notes.append(
            f"{counted(len(left), 'token')} of eos_token_id in config.json found no place, since a GGUF file "
            f"names {len(ENDS)} that end an answer (the first is {left[0]})"
        )
    metadata = {
        "general.type": "model",
        "general.name": name,
        "general.file_type": _FILE_TYPES[max(set(kinds), key=kinds.count)],
        "general.quantization_version": _QUANTISATION_VERSION,
        **_counts(family.name, config),
        **rope,
        **tokens,
    }
    return GGUFModel(family.name, metadata, tuple(entries), tuple(notes))


def family_for(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a model is written as. Raises UserError if there is none."""
    model_type = config.get("model_type")
    for family in FAMILIES.values():
        if model_type in family.written:
            return family
    known = [name for family in FAMILIES.values() for name in family.written]
    raise UserError(f"model_type {model_type}: cannot be written as GGUF; expected one of {', '.join(known)}")


def _complete(config: Mapping[str, Any], weights: Mapping[str, mx.array]) -> dict[str, Any]:
    """config.json with what families reads, where models leave it out."""
    rope = config.get("rope_parameters") or {}
    heads = config["num_attention_heads"]
    return {
        **config,
        "num_key_value_heads": config.get("num_key_value_heads") or heads,
        "head_dim": families.head_dim(config),
        "tie_word_embeddings": not any(name.startswith("lm_head.") for name in weights),
        "rope_theta": config.get("rope_theta") or rope.get("rope_theta") or 10000.0,
        "max_position_embeddings": config.get("max_position_embeddings") or 2048,
    }


def _counts(arch: str, config: Mapping[str, Any]) -> dict[str, Any]:
    head = families.head_dim(config)
    counts = {f"{arch}.{key}": int(config[name]) for key, name in families.COUNTS.items()}
    return counts | {
        f"{arch}.vocab_size": int(config["vocab_size"]),
        f"{arch}.attention.head_count_kv": int(config["num_key_value_heads"]),
        f"{arch}.attention.key_length": head,
        f"{arch}.attention.value_length": head,
        f"{arch}.attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        f"{arch}.rope.dimension_count": round(head * config.get("partial_rotary_factor", 1.0)),
        f"{arch}.rope.freq_base": float(config["rope_theta"]),
    }


# What mlx-lm takes for an option of yarn that config.json leaves out; llama.cpp computes the same.
_YARN: Final = {"beta_fast": 32, "beta_slow": 1, "mscale": 1, "mscale_all_dim": 0}
_YARN_CONTEXT: Final = 4096


def _rope(arch: str, config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Metadata and tensors of factors of scaled rotary embeddings."""
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    key = "original_max_position_embeddings"
    original = scaling.get(key) or config.get(key) or config["max_position_embeddings"]
    prefix = f"{arch}.rope.scaling"
    if kind == "default":
        return {}, {}
    if kind == "llama3":
        factors = families.llama3_factors(scaling, config["rope_theta"], families.head_dim(config))
        return {}, {families.ROPE_FREQS: factors}
    if kind in ("longrope", "su") and arch == "phi3":
        factor = families.longrope_magnitude(config["max_position_embeddings"], original)
        return {f"{prefix}.original_context_length": original, f"{prefix}.attn_factor": factor}, {
            families.ROPE_LONG: np.array(scaling["long_factor"]),
            families.ROPE_SHORT: np.array(scaling["short_factor"]),
        }
    if kind in ("linear", "yarn"):
        metadata = {f"{prefix}.type": kind, f"{prefix}.factor": float(scaling["factor"])}
        if kind == "yarn":
            if changed := [name for name, usual in _YARN.items() if scaling.get(name, usual) != usual]:
                raise UserError(f"rope_scaling yarn: {', '.join(changed)}: has no place in a GGUF file")
            metadata[f"{prefix}.original_context_length"] = int(scaling.get(key, _YARN_CONTEXT))
        return metadata, {}
    raise UserError(f"rope_scaling {kind}: has no place in a GGUF file of {arch}")


def vector(name: str, numbers: np.ndarray) -> Entry:
    """A tensor of type F32."""
    return Entry(name, F32, numbers.shape, lambda: numbers.astype(np.float32))


def _model_entry(
    item: NamedTensor,
    family: Architecture,
    config: Mapping[str, Any],
    weights: Mapping[str, mx.array],
    quantise: Mapping[str, int],
) -> Entry:
    order = families.row_order(family, config, item.layer, write=True)

    def ordered(rows: np.ndarray) -> np.ndarray:
        return rows if order is None else rows[order]

    layer = item.mlx.removesuffix(".weight")
    if f"{layer}.scales" in weights:
        if f"{layer}.biases" not in weights:
            raise UserError(f"{layer}: its kind of quantisation has no place in GGUF; give --dequantize")
        exact = _exact_type(layer, item, weights)
        if exact is not None:
            rows = partial(_packed, layer, item, weights, exact)
            return Entry(item.gguf, exact, item.shape, lambda: ordered(rows()))
        kind = BF16 if weights[f"{layer}.scales"].dtype == mx.bfloat16 else F16
        dense = partial(_dequantised, layer, item, weights)
        return Entry(item.gguf, kind, item.shape, lambda: ordered(_as(dense(), kind)))
    array = weights[item.mlx]
    if tuple(array.shape) != item.shape:
        raise UserError(f"{item.mlx}: expected shape {item.shape}, got {tuple(array.shape)}")
    if array.ndim == 1:
        offset = family.norm_offset if item.layer.endswith("norm") else 0.0
        return Entry(item.gguf, F32, item.shape, lambda: ordered(as_numpy(array) + np.float32(offset)))
    kind = BF16 if array.dtype == mx.bfloat16 else F16
    if layer in quantise and item.shape[-1] % GROUP == 0:
        kind = quantise[layer]
    return Entry(item.gguf, kind, item.shape, lambda: ordered(_as(array, kind)))


def as_numpy(array: mx.array) -> np.ndarray:
    """The numbers in float32."""
    return np.array(array.astype(mx.float32))


def _exact_type(layer: str, item: NamedTensor, weights: Mapping[str, mx.array]) -> int | None:
    """The GGUF type that holds a quantised matrix to the bit; None if none does. Its words are not read."""
    scales, biases = weights[f"{layer}.scales"], weights[f"{layer}.biases"]
    bits = weights[item.mlx].shape[-1] * 32 // item.shape[-1]
    if item.shape[-1] // scales.shape[-1] % GROUP:
        return None
    halves = [array.astype(mx.float16) for array in (scales, biases)]
    for half, array in zip(halves, (scales, biases), strict=True):
        if not mx.array_equal(half.astype(mx.float32), array.astype(mx.float32)).item():
            return None
    return blocks.exact_type(np.array(halves[0]), np.array(halves[1]), bits)


def _packed(layer: str, item: NamedTensor, weights: Mapping[str, mx.array], kind: int) -> np.ndarray:
    """A quantised matrix as rows of a type, in groups of 32 with float16 scales."""
    scales, biases = weights[f"{layer}.scales"], weights[f"{layer}.biases"]
    groups = item.shape[-1] // scales.shape[-1] // GROUP
    halves = (np.repeat(np.array(array.astype(mx.float16)), groups, axis=-1) for array in (scales, biases))
    return blocks.pack(Packed(np.array(weights[item.mlx]), *halves), kind)


def _dequantised(layer: str, item: NamedTensor, weights: Mapping[str, mx.array]) -> mx.array:
    weight, scales, biases = (weights[f"{layer}.{part}"] for part in ("weight", "scales", "biases"))
    columns = item.shape[-1]
    return mx.dequantize(
        weight,
        scales.astype(mx.float32),
        biases.astype(mx.float32),
        group_size=columns // scales.shape[-1],
        bits=weight.shape[-1] * 32 // columns,
    )


def _as(array: mx.array, kind: int) -> np.ndarray:
    """A matrix as rows of a type."""
    if kind == F16:
        return np.array(array.astype(mx.float16))
    if kind == BF16:
        return np.array(array.astype(mx.bfloat16).view(mx.uint16)).view(np.uint8)
    if kind == Q4_1:
        parts = mx.quantize(array.astype(mx.float16), group_size=GROUP, bits=blocks.BITS[Q4_1])
        return blocks.pack(Packed(*(np.array(part) for part in parts)), kind)
    gguf = package()
    return np.asarray(gguf.quantize(as_numpy(array), gguf.GGMLQuantizationType(kind)))


# --- adapters ------------------------------------------------------------------------------------------


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

    Raises UserError(s): an array has no place in such a file (DoRA, embeddings); the package gguf is not
    installed.
    """
    package()
    family, config = family_for(config), _with_heads(config)
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

    Raises UserError: the file is no LoRA adapter of a model with this config.json.
    """
    file = GGUFFile(path)
    family, config = family_for(config), _with_heads(config)
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


def _with_heads(config: Mapping[str, Any]) -> dict[str, Any]:
    heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    return {**config, "head_dim": families.head_dim(config), "num_key_value_heads": heads}
