"""The trainable adapter: LoRA or DoRA layers on the frozen base, read and written as mlx-lm does.

One model holds the base once. What it computes, base, reference or policy, is decided by the adapter weights
that are in it, its trainable parameters; `use` puts others in for a while. The adapters are small, so keeping
three sets of them costs next to nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tuner.dora import DoRAEmbedding, DoRALinear
from mlx_lm.tuner.lora import LoRAEmbedding, LoRALinear, LoRASwitchLinear
from mlx_lm.tuner.utils import linear_to_lora_layers

from localdpo.core.atomic import sha256_of
from localdpo.core.errors import UserError, UserErrors
from localdpo.core.names import command_line, resolve
from localdpo.model.arrays import (
    RepeatableDropout,
    custom_function,
    is_finite,
    load_arrays,
    named,
    recomputed,
    weights_restored,
)
from localdpo.model.cpu import factors_of
from localdpo.model.load import first_line, read_json_object
from localdpo.records.checkpoints import Note, Verified, verified_adapter
from localdpo.records.rundir import run_of

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapters.safetensors"
TYPES = ("lora", "dora")
# The weights of an adapter in PEFT's layout; its adapter_config.json has the same name as mlx-lm's.
PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")

# What mlx-lm puts adapters on.
_ADAPTED = (
    nn.Linear,
    nn.QuantizedLinear,
    SwitchLinear,
    QuantizedSwitchLinear,
    nn.Embedding,
    nn.QuantizedEmbedding,
)
# Far above any that is used; an adapter of more would be as large as the model.
MOST_RANK = 65_536

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
        keys = {} if self.keys is None else {"keys": list(self.keys)}
        return {
            "fine_tune_type": self.type,
            "num_layers": self.layers,
            "lora_parameters": {"rank": self.rank, "scale": self.scale, "dropout": self.dropout, **keys},
            "model": model,
        }


def open_adapter(name: str, note: Note | None = None) -> Verified:
    """An adapter given as a `demo:` name or a path, after its files were compared with its manifest.

    A run's LATEST stands for its newest complete checkpoint; `note` gets a line where newer ones are skipped.

    Raises:
        UserError: it does not exist, one of its two files is missing or damaged.
    """
    path = resolve(name) if name.startswith("demo:") else Path(name).expanduser()
    files = (CONFIG_FILE, WEIGHTS_FILE)
    adapter = verified_adapter(path, files, note)
    if not adapter.path.is_dir():
        raise UserError(f"adapter {name}: {_why_missing(path)}")
    missing = [file for file in files if not (adapter.path / file).is_file()]
    if missing and any((adapter.path / file).is_file() for file in PEFT_FILES):
        how = command_line("import", name, "OUT")
        raise UserError(f"adapter {name}: this is a PEFT adapter; `{how}` writes it for mlx-lm")
    if missing:
        raise UserError(f"adapter {name}: {' and '.join(missing)} missing in this folder")
    return adapter


def _why_missing(path: Path) -> str:
    run = run_of(path)
    if run is None:
        return f"no such folder; expected {CONFIG_FILE} and {WEIGHTS_FILE} in it"
    left = ", ".join(sorted(folder.name for folder in run.checkpoints.glob("step-*"))) or "none"
    return (
        f"run {run.name} has no such checkpoint any more (it keeps its newest save.keep; there now: {left}); "
        "put it back, or start a new run from one that is there"
    )


def adapter_fingerprint(folder: Path, digests: Mapping[str, str] | None = None) -> str:
    """A hash over the shape and the weights of an adapter, in hex, whatever else is in its folder.

    `digests`: the sha256 of its files, by name, as far as they are known.
    """
    known = digests or {}
    files = "".join(known.get(file) or sha256_of(folder / file) for file in (CONFIG_FILE, WEIGHTS_FILE))
    return hashlib.sha256(files.encode()).hexdigest()


def read_config(folder: Path) -> LoraConfig:
    """The adapter's shape from its adapter_config.json.

    Raises:
        UserError, UserErrors: everything that is wrong with it: unreadable, incomplete, or a full fine-tune.
    """
    file = folder / CONFIG_FILE
    raw = read_json_object(file)
    kind, parameters = raw.get("fine_tune_type", "lora"), raw.get("lora_parameters")
    if kind not in TYPES:
        raise UserError(
            f"{file} fine_tune_type: expected lora or dora, got {_quote(kind)}; "
            "fuse it into the model first (mlx_lm.fuse)"
        )
    if not isinstance(parameters, dict):
        raise UserError(
            f"{file} lora_parameters: expected an object with rank and scale, got {_quote(parameters)}; "
            "this is not an adapter configuration of mlx-lm"
        )
    given: dict[str, Any] = {"rank": None, "scale": None, "dropout": 0.0, "keys": None, **parameters}
    rank, scale, dropout, keys = (given[name] for name in ("rank", "scale", "dropout", "keys"))
    layers: Any = raw.get("num_layers")
    are_names = isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys)
    expected = {
        "rank": ("a whole number, 1 or more", rank, _is_whole(rank) and 1 <= rank <= MOST_RANK),
        "scale": ("a number", scale, _is_number(scale)),
        "dropout": ("a number from 0 to below 1", dropout, _is_number(dropout) and 0 <= dropout < 1),
        "num_layers": ("a whole number", layers, _is_whole(layers)),
        "keys": ("a list of layer names", keys, keys is None or are_names),
    }
    if problems := [
        UserError(f"{file} {name}: expected {what}, got {_quote(value)}")
        for name, (what, value, fits) in expected.items()
        if not fits
    ]:
        raise UserErrors(problems)
    return LoraConfig(
        type=kind,
        # mlx-lm takes 0, like -1, as all blocks.
        layers=layers if layers > 0 else -1,
        rank=rank,
        scale=float(scale),
        dropout=float(dropout),
        keys=tuple(keys) if keys is not None else None,
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (_is_whole(value) and abs(value) < 2**63) or (isinstance(value, float) and math.isfinite(value))


def _quote(value: object) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


DORA_NOTE = (
    "DoRA on a quantised base: every forward pass dequantises each adapted layer for its norm; "
    "lora.type=lora is faster, or take a 16-bit base"
)


def dequantises(model: nn.Module) -> bool:
    """Whether a DoRA layer of the model has a quantised base."""
    bases = (
        module.get("linear", module.get("embedding"))
        for module in model.modules()
        if isinstance(module, DoRALinear | DoRAEmbedding)
    )
    return any(isinstance(base, nn.QuantizedLinear | nn.QuantizedEmbedding) for base in bases)


def attach(model: nn.Module, config: LoraConfig, *, seed: int) -> None:
    """Put fresh adapters on a frozen model, in place; their output is zero until they are trained.

    Raises:
        UserErrors: every one of `keys` that names no layer of the adapted blocks.
        UserError: a layer that takes no adapter, or none that takes one.
    """
    mx.random.seed(seed)
    parameters = {
        "rank": config.rank,
        "scale": config.scale,
        "dropout": config.dropout,
        "keys": set(config.keys) if config.keys is not None else None,
    }
    _check_keys(model, config)
    try:
        linear_to_lora_layers(model, config.layers, parameters, use_dora=config.type == "dora")
    except ValueError as error:
        raise UserError(f"lora: {first_line(error)}") from error
    if not named(model.trainable_parameters()):
        raise UserError("lora: no layer of the model's blocks takes an adapter; choose another model")
    for module in model.modules():
        if type(module) is LoRALinear:
            module.__class__ = LeanLoRALinear
        elif type(module) is nn.Dropout:
            module.__class__ = RepeatableDropout
    # Dropout belongs to training; it is off in every forward that scores or samples.
    model.eval()


class LeanLoRALinear(LoRALinear):
    """mlx-lm's layer with the same numbers, but without passes and copies of whole outputs and inputs.

    In float32 the scale is on the few numbers between the adapter's two products, and the second is added
    where it is computed. The output of SwiGLU, which the gradient of `lora_a` needs, is multiplied again
    there from what is kept anyway (see `cpu.factors_of`).

    Of a 16-bit input the product with the float32 adapter makes a copy; the gradient of `lora_a` needs it,
    and every adapted layer kept it until the backward pass. Here it is rebuilt there.
    """

    def __call__(self, x: mx.array) -> mx.array:
        if x.dtype == mx.float32:
            dropped, a = self.dropout(x), self.scale * self.lora_a
            factors = [mx.stop_gradient(factor) for factor in factors_of(dropped)]
            adapted: mx.array = _with_product(self.linear(x), dropped, a, self.lora_b, *factors)[0]
            return adapted
        z = _product(self.dropout(x), self.lora_a, self.lora_b)
        return self.linear(x) + (self.scale * z).astype(x.dtype)


@custom_function
def _with_product(
    y: mx.array, x: mx.array, a: mx.array, b: mx.array, *factors: mx.array
) -> tuple[mx.array, mx.array]:
    """`y + x @ a @ b`, and `x @ a`, which the gradient takes: [..., out] and [..., rank].

    With `factors`, whose product `x` is, these are kept for the gradient in its place.
    """
    narrow = x @ a
    return mx.addmm(y, narrow, b), narrow


@_with_product.vjp
def _with_product_vjp(primals: Any, cotangents: Any, outputs: Any) -> tuple[mx.array, ...]:
    _, x, a, b, *factors = primals
    flow, narrow = cotangents[0], outputs[1]
    if factors:
        # Not before the flow is there: it may be multiplied as soon as the forward pass is done.
        x = reduce(mx.multiply, mx.depends(factors, [flow]))
    narrow_flow = flow @ b.T
    grad_a = x.flatten(0, -2).T @ narrow_flow.flatten(0, -2)
    grad_b = narrow.flatten(0, -2).T @ flow.flatten(0, -2)
    # They come before what goes further down, or the flows of all layers would wait for them.
    flow, narrow_flow = mx.depends([flow, narrow_flow], [grad_a, grad_b])
    return flow, narrow_flow @ a.T, grad_a, grad_b, *map(mx.zeros_like, factors)


@recomputed
def _product(x: mx.array, a: mx.array, b: mx.array) -> mx.array:
    return (x @ a) @ b


def _check_keys(model: nn.Module, config: LoraConfig) -> None:
    """mlx-lm ignores a key that names nothing, and the adapter has fewer layers than requested."""
    blocks = model.layers[-config.layers :] if config.layers > 0 else model.layers
    # As mlx-lm: the names within a block, and within the whole model.
    modules = [pair for block in blocks for pair in block.named_modules()] + model.named_modules()
    layers = dict.fromkeys(name for name, module in modules if takes_adapter(module))
    problems = [
        UserError(f"lora.keys: {_quote(key)} is no linear layer of the model's blocks{_near(key, layers)}")
        for key in config.keys or ()
        if key not in layers
    ]
    if problems:
        raise UserErrors(problems)


def takes_adapter(module: nn.Module) -> bool:
    """Whether mlx-lm puts an adapter on this module."""
    return hasattr(module, "to_lora") or isinstance(module, _ADAPTED)


def _near(key: str, layers: Iterable[str]) -> str:
    """The name that was meant: one that ends in the key (q_proj), or one that is spelt much like it."""
    short = [name for name in layers if not name.startswith("model.")]
    near = [name for name in short if name.endswith(f".{key}")] or get_close_matches(key, short, n=1)
    return f"; did you mean {near[0]}?" if near else f"; its layers are {', '.join(short[:8])}"


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
        UserError: names or shapes that are not exactly the model's, or values that are no finite numbers.
    """
    file = folder / WEIGHTS_FILE
    set_weights(model, load_arrays(file), file)


def set_weights(model: nn.Module, loaded: Mapping[str, mx.array], file: Path) -> None:
    """The same with weights that were read from `file`."""
    wanted = named(model.trainable_parameters())
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
    # Whole numbers get no gradient, so that training would change nothing and say so nowhere.
    damaged = sorted(name for name, array in loaded.items() if not is_finite(array))
    if damaged:
        raise UserError(
            f"{file}: {damaged[0]}: expected finite floating-point numbers; take an adapter that is whole"
        )
    model.load_weights([(name, w.astype(wanted[name].dtype)) for name, w in loaded.items()], strict=False)


@contextmanager
def use(model: nn.Module, weights: Weights) -> Iterator[None]:
    """While the context holds, the model computes with these adapter weights and without dropout."""
    training = model.training
    with weights_restored(model):
        model.update(weights)
        model.eval()
        try:
            yield
        finally:
            model.train(training)
