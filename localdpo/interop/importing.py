"""`localdpo import`: what other programs made, as a folder in mlx-lm's layout.

What lies at a path its content says, by the table IMPORTERS. To add a kind, write its `convert`, and a line
there.
"""

from __future__ import annotations

import importlib.util
import math
import pickle
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn

from localdpo.core.atomic import published_dir, remove_dir
from localdpo.core.errors import UserError, UserErrors
from localdpo.core.text import counted
from localdpo.gguf.convert import REQUANTISED_BITS, is_gguf
from localdpo.gguf.convert import convert as convert_gguf
from localdpo.gguf.file import MAGIC
from localdpo.interop.folder import (
    copy_tokenizer,
    make_parent,
    nbytes,
    write_config,
    write_json,
    write_weights,
)
from localdpo.interop.fuse import QUANTISATION
from localdpo.interop.peft import from_peft, is_peft
from localdpo.model import lora
from localdpo.model.arrays import named
from localdpo.model.generate import try_out
from localdpo.model.load import build_model, first_line, load_base, model_path, read_json_object

# Weights that share a scale where a model is quantised, as mlx-lm does it unless told otherwise.
GROUP_SIZE: Final = 64
# Of the paragraph. A model that is in order has 5 to 30, and hundreds where it was made for another language.
_DISORDER: Final = 1000.0
# The key of the weights in a policy.pt.
_STATE: Final = "state"


@dataclass(frozen=True)
class ImportRequest:
    """What a person asked for; see `localdpo import --help`."""

    source: Path
    out: Path
    model: str | None = None
    bits: int | None = None
    check: bool = True

    @property
    def given(self) -> set[str]:
        """The options that not every kind takes, and that were given."""
        options = {
            "--model": self.model is not None,
            "--bits": self.bits is not None,
            "--no-check": not self.check,
        }
        return {name for name, is_given in options.items() if is_given}


@dataclass(frozen=True)
class ImportReport:
    """What was written: for people, and for programs."""

    lines: list[str]
    record: dict[str, Any]


@dataclass(frozen=True)
class Importer:
    """A kind of file or folder that can be imported.

    Attributes:
        what: it is, in a few words.
        options: of --model, --bits and --no-check, those that it takes.
        matches: whether a path is one; looks at names and first bytes.
        convert: writes the folder, whole or not at all; raises UserError(s) for what mlx-lm has no place for.
    """

    what: str
    options: frozenset[str]
    matches: Callable[[Path], bool]
    convert: Callable[[ImportRequest], ImportReport]


def import_path(request: ImportRequest) -> ImportReport:
    """Write what is at the path as a folder in mlx-lm's layout.

    Raises UserError(s) for what is not there, of no known kind, damaged, or does not fit its base model.
    """
    source, out = request.source, request.out
    importer, problems = None, list[str]()
    if not (source.is_file() or source.is_dir()):
        problems.append(f"{source}: no such file or folder")
    elif (source / lora.WEIGHTS_FILE).is_file():
        problems.append(
            f"{source}: this is an adapter of mlx-lm already; a recipe can name it as its adapter"
        )
    else:
        importer = next((entry for entry in IMPORTERS if entry.matches(source)), None)
        if importer is None:
            *kinds, last = [entry.what for entry in IMPORTERS]
            problems.append(f"{source}: expected {', '.join(kinds)} or {last}")
        else:
            useless = sorted(request.given - importer.options)
            problems += [f"{option}: {importer.what} has no use for it" for option in useless]
    if request.bits is not None and request.bits not in REQUANTISED_BITS:
        problems.append(f"--bits {request.bits}: expected {' or '.join(map(str, REQUANTISED_BITS))}")
    if out.exists() or out.is_symlink():
        problems.append(f"{out}: exists already; give another folder")
    if problems or importer is None:
        raise UserErrors([UserError(problem) for problem in problems])
    make_parent(out)
    return importer.convert(request)


# --- the kinds -----------------------------------------------------------------------------------------


def _is_gguf(path: Path) -> bool:
    # Of a file that is called so and is none the reader says why.
    if is_gguf(path.name) and path.is_file():
        return True
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _gguf(request: ImportRequest) -> ImportReport:
    written = convert_gguf(request.source, request.out, bits=request.bits)
    types = ", ".join(f"{count} {name}" for name, count in sorted(written.types.items()))
    count, size = sum(written.types.values()), f"{written.bytes / 1e6:,.0f} MB"
    lines = [f"{request.out}: {written.family}, {counted(count, 'tensor')} ({types}), {size}"]
    if written.kept:
        lines.append(f"quantised as before: {counted(written.kept, 'tensor')}")
    if written.dequantised:
        became = "float16" if request.bits is None else f"{request.bits} bits"
        lines.append(f"{counted(written.dequantised, 'tensor')} of types that MLX lacks became {became}")
    return _tried(request, lines, {**asdict(written), "folder": str(request.out)})


def _tried(request: ImportRequest, lines: list[str], record: dict[str, Any]) -> ImportReport:
    """The report of a model, which is tried out unless the request says no. Nothing stays of one that fails.

    Raises UserError for one that cannot be loaded, or computes no numbers.
    """
    if request.check:
        try:
            trial = try_out(load_base(str(request.out)))
            if math.isnan(trial.perplexity):
                raise UserError(
                    f"{request.source}: this model computes NaN; --no-check imports it all the same"
                )
        except BaseException:
            remove_dir(request.out)
            raise
        record["check"] = asdict(trial)
        lines.append(f"{trial.asked} -> {' '.join(trial.answer.split())}")
        lines.append(
            f"perplexity {trial.perplexity:.2f} over the {counted(trial.tokens, 'token')} of a "
            "built-in paragraph"
        )
        if trial.perplexity > _DISORDER:
            lines.append(
                "5 to 30 is usual: the weights and the words of this model may not belong together, "
                "or it does not know English"
            )
    return ImportReport(lines, record)


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file() and any(path.glob("model*.safetensors"))


def _model(request: ImportRequest) -> ImportReport:
    """A whole model, fine-tuned in full or not, in the names and layout of mlx-lm."""
    model, config = build_model(str(request.source))
    kept = {key: value for key, value in config.items() if key not in QUANTISATION}
    if request.bits is not None:
        if len(kept) < len(config):
            raise UserError(f"--bits: {request.source} is quantised already; leave it out")
        nn.quantize(
            model,
            group_size=GROUP_SIZE,
            bits=request.bits,
            class_predicate=lambda _, module: (
                hasattr(module, "to_quantized") and module.weight.shape[-1] % GROUP_SIZE == 0
            ),
        )
        config = kept | {"quantization": {"group_size": GROUP_SIZE, "bits": request.bits}}
    weights = named(model.parameters())
    size, count = nbytes(weights), len(weights)
    with published_dir(request.out, size, replace=False) as folder:
        write_config(folder, config)
        write_weights(folder, weights, "mlx")
        notes = copy_tokenizer(request.source, folder)
    line = f"{request.out}: {config['model_type']}, {counted(count, 'tensor')}, {size / 1e6:,.0f} MB"
    return _tried(request, [line, *notes], {"folder": str(request.out), "tensors": count, "bytes": size})


def _peft(request: ImportRequest) -> ImportReport:
    config = request.source / lora.CONFIG_FILE
    name = request.model or read_json_object(config).get("base_model_name_or_path")
    if not isinstance(name, str):
        raise UserError(
            f"{config} base_model_name_or_path: expected the base model's name; give it with --model"
        )
    model, _ = build_model(name)
    shape, weights = from_peft(request.source, model)
    lora.attach(model, shape, seed=0)
    lora.set_weights(model, weights, request.source)
    with published_dir(request.out, nbytes(weights), replace=False) as folder:
        write_json(folder / lora.CONFIG_FILE, shape.to_json(name))
        mx.save_safetensors(str(folder / lora.WEIGHTS_FILE), weights)
    line = f"{request.out}: {shape.type} adapter of rank {shape.rank}, scale {shape.scale:g}, for {name}"
    return ImportReport([line], {**shape.to_json(name), "folder": str(request.out)})


def _policy(request: ImportRequest) -> ImportReport:
    if request.model is None:
        raise UserError(f"{request.source}: it holds weights alone; name the base that was trained: --model")
    base = model_path(request.model)
    weights = _read_policy(request.source)
    types = Counter(str(array.dtype).rpartition(".")[2] for array in weights.values())
    config = read_json_object(base / "config.json")
    config = {key: value for key, value in config.items() if key not in QUANTISATION}
    size = nbytes(weights)
    with published_dir(request.out, size, replace=False) as folder:
        write_config(folder, config)
        write_weights(folder, weights, "pt")
        lines = copy_tokenizer(base, folder)
        try:
            build_model(str(folder))
        except UserError as error:
            raise UserError(f"{request.source}: these weights are not of {request.model}: {error}") from error
    named = ", ".join(f"{count} {name}" for name, count in sorted(types.items()))
    tensors = counted(types.total(), "tensor")
    first = f"{request.out}: {config['model_type']}, {tensors} ({named}), {size / 1e6:,.0f} MB"
    return ImportReport([first, *lines], {"folder": str(request.out), "types": dict(types), "bytes": size})


def _is_policy(path: Path) -> bool:
    """Whether this is a file of PyTorch: a zip archive with a pickle in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def _read_policy(path: Path) -> dict[str, mx.array]:
    """The weights of `policy.pt`, by their names in transformers and in the types that they have there.

    The reference implementation of DPO (Rafailov et al. 2023) saves a dict whose `state` holds them. Nothing
    in it says which model it is: config and tokenizer come from the base that was trained. Only weights are
    read; a file that holds anything else is refused by PyTorch before it could run.
    Raises UserError without PyTorch, and for a file that is damaged, holds more than weights, or has none.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{path}: this needs PyTorch, which is not installed: pip install 'localdpo[torch]'")
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise UserError(f"{path}: PyTorch cannot read it as weights: {first_line(error)}") from error
    state = content.get(_STATE) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path}: expected a dict with the weights under {_STATE!r}, as policy.pt has it")
    try:
        return {str(name): _array(tensor.detach()) for name, tensor in state.items()}
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path}: weights of a type that is not read here: {first_line(error)}") from error


def _array(tensor: Any) -> mx.array:
    import torch

    if tensor.dtype == torch.bfloat16:  # which NumPy lacks
        return mx.array(tensor.contiguous().view(torch.int16).numpy()).view(mx.bfloat16)
    return mx.array(tensor.numpy())


IMPORTERS: Final = (
    Importer(
        f"the folder of a PEFT adapter ({lora.CONFIG_FILE} and {lora.PEFT_FILES[0]})",
        frozenset({"--model"}),
        is_peft,
        _peft,
    ),
    Importer(
        "a file of PyTorch with weights under 'state' (policy.pt)",
        frozenset({"--model"}),
        _is_policy,
        _policy,
    ),
    Importer("a .gguf file", frozenset({"--bits", "--no-check"}), _is_gguf, _gguf),
    Importer(
        "a model's folder (config.json and model.safetensors)",
        frozenset({"--bits", "--no-check"}),
        _is_model,
        _model,
    ),
)
