"""The trainable adapter: LoRA or DoRA layers on the frozen base, read and written as mlx-lm does.

One model holds the base once. What it computes, base, reference or policy, is decided by the
adapter weights that are in it; `adapter_weights` takes them out and `use` puts others in for a
while. The adapters are small, so keeping three sets of them costs next to nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from localdpo.core.errors import UserError
from localdpo.core.names import resolve
from localdpo.model.arrays import load_arrays, named
from localdpo.model.load import first_line

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapters.safetensors"
TYPES = ("lora", "dora")

Weights = Any  # a tree of arrays, as nn.Module.trainable_parameters returns it


@dataclass(frozen=True)
class LoraConfig:
    """The shape of an adapter, with mlx-lm's names.

    Attributes:
        type: "lora" or "dora".
        layers: the last so many blocks carry adapters.
        rank, scale, dropout: of every adapter; `scale` multiplies its output.
        keys: names of the adapted linear layers within a block; None means all.
    """

    type: str
    layers: int
    rank: int
    scale: float
    dropout: float = 0.0
    keys: tuple[str, ...] | None = None

    def to_json(self, model: str) -> dict[str, Any]:
        """The content of adapter_config.json for an adapter of the model named `model`."""
        parameters: dict[str, Any] = {"rank": self.rank, "scale": self.scale, "dropout": self.dropout}
        if self.keys is not None:
            parameters["keys"] = list(self.keys)
        return {
            "fine_tune_type": self.type,
            "num_layers": self.layers,
            "lora_parameters": parameters,
            "model": model,
        }


def adapter_path(name: str) -> Path:
    """The folder of an adapter given as a `demo:` name or a path.

    Raises:
        UserError: it does not exist, or one of its two files is missing.
    """
    path = resolve(name) if name.startswith("demo:") else Path(name).expanduser()
    if not path.is_dir():
        raise UserError(f"adapter {name}: no such folder; expected {CONFIG_FILE} and {WEIGHTS_FILE} in it")
    missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if not (path / file).is_file()]
    if missing:
        raise UserError(f"adapter {name}: {' and '.join(missing)} missing in this folder")
    return path


def read_config(folder: Path) -> LoraConfig:
    """The adapter's shape from its adapter_config.json.

    Raises:
        UserError: unreadable, incomplete, or a full fine-tune.
    """
    file = folder / CONFIG_FILE
    try:
        raw = json.loads(file.read_text())
        kind = raw.get("fine_tune_type", "lora")
        if kind not in TYPES:
            raise UserError(
                f"{file} fine_tune_type: expected lora or dora, got {kind!r}; "
                "fuse it into the model first (mlx_lm.fuse)"
            )
        parameters = raw["lora_parameters"]
        keys = parameters.get("keys")
        rank, layers = int(parameters["rank"]), int(raw["num_layers"])
        if rank < 1:
            raise UserError(f"{file} rank: expected 1 or more, got {rank}")
        return LoraConfig(
            type=kind,
            # mlx-lm takes 0, like -1, as all blocks.
            layers=layers if layers > 0 else -1,
            rank=rank,
            scale=float(parameters["scale"]),
            dropout=float(parameters.get("dropout", 0.0)),
            keys=tuple(keys) if keys is not None else None,
        )
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: not an adapter configuration of mlx-lm: {first_line(error)}") from error


def attach(model: nn.Module, config: LoraConfig, *, seed: int) -> None:
    """Put fresh adapters on a frozen model, in place; their output is zero until they are trained.

    Raises:
        UserError: `keys` that name no linear layer of the model, or a layer that takes no adapter.
    """
    mx.random.seed(seed)
    parameters = {
        "rank": config.rank,
        "scale": config.scale,
        "dropout": config.dropout,
        "keys": set(config.keys) if config.keys is not None else None,
    }
    try:
        linear_to_lora_layers(model, config.layers, parameters, use_dora=config.type == "dora")
    except ValueError as error:
        raise UserError(f"lora: {first_line(error)}") from error
    if not named(model.trainable_parameters()):
        raise UserError(
            f"lora.keys: none of {', '.join(config.keys or ())} is a linear layer of the model's blocks"
        )
    # Dropout belongs to training; it is off in every forward that scores or samples.
    model.eval()


def detach(model: nn.Module) -> None:
    """Take the adapters off a model, in place: it is the frozen base again, without their cost."""
    plain = []
    for name, module in model.named_modules():
        if isinstance(module, LoRALinear | LoRASwitchLinear | DoRALinear):
            plain.append((name, module.linear))
        elif isinstance(module, LoRAEmbedding | DoRAEmbedding):
            plain.append((name, module.embedding))
    model.update_modules(tree_unflatten(plain))


def load_weights(model: nn.Module, folder: Path) -> None:
    """Put an adapter's weights into a model that carries adapters of its shape.

    Raises:
        UserError: names or shapes that are not exactly the model's.
    """
    file = folder / WEIGHTS_FILE
    loaded, wanted = load_arrays(file), named(model.trainable_parameters())
    problems = [f"{name} is missing" for name in sorted(wanted.keys() - loaded.keys())]
    problems += [f"{name} is not in the model" for name in sorted(loaded.keys() - wanted.keys())]
    problems += [
        f"{name} has shape {tuple(loaded[name].shape)}, the model {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & loaded.keys())
        if loaded[name].shape != wanted[name].shape
    ]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(f"{file}: the adapter does not fit the model: {'; '.join(problems[:3])}{more}")
    model.load_weights([(name, w.astype(wanted[name].dtype)) for name, w in loaded.items()], strict=False)


def adapter_weights(model: nn.Module) -> Weights:
    """The adapter weights that are in the model now."""
    return model.trainable_parameters()


@contextmanager
def use(model: nn.Module, weights: Weights) -> Iterator[None]:
    """While the context holds, the model computes with these adapter weights and without dropout."""
    before, training = adapter_weights(model), model.training
    model.update(weights)
    model.eval()
    try:
        yield
    finally:
        model.update(before)
        model.train(training)
