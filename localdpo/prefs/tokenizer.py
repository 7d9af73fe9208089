"""A model's tokenizer without the model: MLX is not loaded for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from localdpo.core.errors import UserError
from localdpo.core.names import is_demo, resolve
from localdpo.core.preload import preload

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def open_tokenizer(model: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model given as a folder, a hub id or a `demo:` name.

    Raises UserError when there is none that transformers can read.
    """
    preload()
    from transformers import AutoTokenizer

    path = resolve(model) if is_demo(model) else Path(model).expanduser()
    looks_local = is_demo(model) or model.count("/") != 1 or model.startswith((".", "/", "~"))
    if looks_local and not path.is_dir():
        raise UserError(f"model {model}: no such folder; expected a model folder, a hub id or demo:model")
    name = str(path) if path.is_dir() else model
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except Exception as error:
        # `tokenizers` raises bare Exceptions, and transformers whatever a value of the wrong type leads to.
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"model {model}: its tokenizer cannot be read: {words}") from error


def end_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids at which answers of the tokenizer's model end: those of its generation_config.json, else of its
    config.json, as mlx-lm reads them."""
    from transformers.utils import cached_file

    found: object = None
    for name in ("config.json", "generation_config.json"):
        file = cached_file(
            tokenizer.name_or_path, name, local_files_only=True, _raise_exceptions_for_missing_entries=False
        )
        try:
            read = json.loads(Path(file).read_text(encoding="utf-8")) if file else {}
        except (OSError, ValueError):
            continue
        found = (read.get("eos_token_id") if isinstance(read, dict) else None) or found
    listed = found if isinstance(found, list) else [found]
    return frozenset(number for number in listed if type(number) is int)
