"""Whole models in files of PyTorch, as the reference implementation of DPO saves them (Rafailov et al. 2023).

`policy.pt` is a dict whose `state` holds the weights by transformers' names. Nothing in it says which model
it is: config and tokenizer come from the base that was trained. Only weights are read; a file that holds
anything else is refused by PyTorch before it could run.
"""

from __future__ import annotations

import importlib.util
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import mlx.core as mx

from localdpo.core.errors import UserError
from localdpo.model.load import first_line

STATE: Final = "state"


def is_policy(path: Path) -> bool:
    """Whether this is a file of PyTorch: a zip archive with a pickle in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def read_policy(path: Path) -> dict[str, mx.array]:
    """The weights of a file, by their names in transformers and in the types that they have there.

    Raises UserError without PyTorch, and for a file that is damaged, holds more than weights, or has none.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{path}: this needs PyTorch, which is not installed: pip install 'localdpo[torch]'")
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: PyTorch cannot read it as weights: {first_line(error)}") from error
    state = content.get(STATE) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a dict with the weights under {STATE!r}, as policy.pt has it")
    try:
        return {str(name): _array(tensor.detach()) for name, tensor in state.items()}
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path}: weights of a type that is not read here: {first_line(error)}") from error


def _array(tensor: Any) -> mx.array:
    import torch

    if tensor.dtype == torch.bfloat16:  # which NumPy lacks
        return mx.array(tensor.contiguous().view(torch.int16).numpy()).view(mx.bfloat16)
    return mx.array(tensor.numpy())
