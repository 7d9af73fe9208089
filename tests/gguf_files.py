"""Small GGUF files, written by the `gguf` package as llama.cpp's converter writes them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from tiny_folders import CHATML, make_tokenizer

TYPES = gguf.GGMLQuantizationType
# Sizes that hold whole groups of 32, and of 256 in the MLP.
CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def random_weights(family: str, seed: int = 0, **changed: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A random model of mlx-lm's class, with opinions, and its config."""
    config = {**CONFIG, "model_type": family, "vocab_size": len(make_tokenizer()), **changed}
    module = importlib.import_module(f"mlx_lm.models.{family}")
    model = module.Model(module.ModelArgs.from_dict(config))
    rng = np.random.default_rng(seed)
    for name, array in tree_flatten(model.parameters()):
        noise = rng.normal(size=array.shape).astype(np.float32) * (0.3 if array.ndim == 2 else 0.1)
        array[...] = mx.array(noise if array.ndim == 2 or family == "gemma" else 1 + noise)
        assert name
    return model, config


def as_llama_cpp(name: str, array: np.ndarray, config: Mapping[str, Any]) -> np.ndarray:
    """What llama.cpp's convert_hf_to_gguf.py makes of a tensor (LlamaModel.permute, GemmaModel)."""
    family = config["model_type"]
    if family == "gemma" and name.endswith("norm.weight"):
        return array + 1
    if family == "llama" and ("q_proj" in name or "k_proj" in name):
        heads = config["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
        halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
        return halves.swapaxes(1, 2).reshape(array.shape)
    return array


def write_gguf(
    path: Path,
    model: nn.Module,
    config: Mapping[str, Any],
    kind: gguf.GGMLQuantizationType = TYPES.F32,
    *,
    changed: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
) -> Path:
    """Write a model with the tokenizer of tiny_folders; matrices are of type `kind`.

    `changed`: metadata to set; None takes a key away. `tensors`: the same for tensors.
    """
    family, changed = config["model_type"], {**(changed or {})}
    writer = gguf.GGUFWriter(path, family)
    arch = gguf.MODEL_ARCH[family.upper()]
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    values: dict[str, Any] = {
        f"{family}.context_length": np.uint32(config["max_position_embeddings"]),
        f"{family}.embedding_length": np.uint32(config["hidden_size"]),
        f"{family}.block_count": np.uint32(config["num_hidden_layers"]),
        f"{family}.feed_forward_length": np.uint32(config["intermediate_size"]),
        f"{family}.attention.head_count": np.uint32(config["num_attention_heads"]),
        f"{family}.attention.head_count_kv": np.uint32(config["num_key_value_heads"]),
        f"{family}.attention.key_length": np.uint32(config["head_dim"]),
        f"{family}.attention.layer_norm_rms_epsilon": np.float32(config["rms_norm_eps"]),
        f"{family}.rope.freq_base": np.float32(config["rope_theta"]),
    }
    values |= tokenizer_values()
    for key, value in {**values, **changed}.items():
        if value is not None:
            add(writer, key, value)
    arrays = {
        names.get_name(name, (".weight", ".bias")): as_llama_cpp(name, np.array(array), config)
        for name, array in tree_flatten(model.parameters())
    }
    for name, array in {**arrays, **(tensors or {})}.items():
        if array is None:
            continue
        of = kind if array.ndim == 2 else TYPES.F32
        packed = gguf.quantize(array.astype(np.float32), of)
        writer.add_tensor(name, packed, raw_dtype=of)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tokenizer_values() -> dict[str, Any]:
    """Metadata of the byte-level tokenizer of tiny_folders."""
    tokenizer = make_tokenizer()

    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens) | {"<|im_start|>"}
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.eos_token_id": np.uint32(tokenizer.eos_token_id),
        "tokenizer.ggml.padding_token_id": np.uint32(tokenizer.pad_token_id),
        "tokenizer.chat_template": CHATML,
    }


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """A key of the type that its value has."""
    kinds = {np.uint32: writer.add_uint32, np.float32: writer.add_float32, bool: writer.add_bool}
    kinds |= {str: writer.add_string, list: writer.add_array}
    kinds[type(value)](key, value.item() if isinstance(value, np.generic) else value)
