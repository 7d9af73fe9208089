"""A model's folder in the layout that mlx-lm and transformers share: config, weights in shards, tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
from mlx_lm.utils import make_shards, save_config

from localdpo.core.errors import UserError
from localdpo.model.load import TOKENIZER_FILES

# Of these models transformers has the same names, shapes and meaning for every weight that mlx-lm has. Tested
# against transformers itself (tests/parity); another may differ in a way that no loader reports, as with
# norms that are stored less one.
SAME_NAMES = frozenset(
    {
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "llama",
        "mistral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
    }
)


def require_same_names(config: dict[str, Any]) -> None:
    """Raise UserError for a model whose weights transformers may know by other names than mlx-lm does."""
    if config["model_type"] not in SAME_NAMES:
        raise UserError(
            f"model_type {config['model_type']}: its weights may have other names in transformers than in "
            f"mlx-lm; expected one of {', '.join(sorted(SAME_NAMES))}; --to mlx takes every model"
        )


def nbytes(weights: dict[str, mx.array]) -> int:
    """Bytes of these arrays, whether they are evaluated or not."""
    return sum(array.nbytes for array in weights.values())


def write_weights(folder: Path, weights: dict[str, mx.array], framework: Literal["mlx", "pt"]) -> None:
    """model.safetensors, or its shards, and their index. `weights` is emptied, so that of weights which are
    computed only now no more than a shard is in memory.
    """
    total = nbytes(weights)
    shards = make_shards(weights)
    weights.clear()
    count, owners = len(shards), dict[str, str]()
    for number in range(count):
        shard, shards[number] = shards[number], {}
        file = f"model-{number + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"
        mx.save_safetensors(str(folder / file), shard, metadata={"format": framework})
        owners |= dict.fromkeys(shard, file)
        del shard
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(owners.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """config.json, with mlx-lm's writer, which knows the numbers that JSON lacks."""
    save_config(dict(config), folder / "config.json")


def write_json(path: Path, value: Any) -> None:
    """A JSON file of several lines."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def tokenizer_files(base: Path) -> list[Path]:
    """What of a model's folder decides how text becomes tokens and back, and its own code."""
    found = {path for pattern in (*TOKENIZER_FILES, "*.py") for path in base.glob(pattern)}
    return sorted(path for path in found if path.parent == base and path.is_file())


def tokenizer_bytes(base: Path) -> int:
    """Bytes of `tokenizer_files`."""
    return sum(path.stat().st_size for path in tokenizer_files(base))


def copy_tokenizer(base: Path, folder: Path) -> list[str]:
    """Copy the `tokenizer_files` as they are: a tokenizer that is read and saved again may come out as
    another one. Returns a line on what stays behind.
    """
    for path in tokenizer_files(base):
        # The content: the files of the hub's cache are links.
        shutil.copyfile(path, folder / path.name)
    left = sorted(path.parent.name for path in base.glob("additional_chat_templates/*.jinja"))
    return [f"{left[0]}: these further chat templates are not copied"] if left else []
