"""Loading a base model and its tokenizer, from a folder, the hub or the bundled demo."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten
from mlx_lm.models.cache import ArraysCache, make_prompt_cache
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tokenizer_utils import load as load_mlx_tokenizer
from mlx_lm.utils import load_config, load_model

from localdpo.core.atomic import entries, file_hash
from localdpo.core.errors import UserError, UserErrors
from localdpo.core.names import resolve
from localdpo.gguf.convert import cached_folder, is_gguf
from localdpo.model.arrays import float_types, read_header
from localdpo.model.backend import device_name, keep_float32_exact
from localdpo.model.cpu import take_swiglu
from localdpo.model.head import text_model

# What decides how text becomes tokens, how a conversation is rendered, and which tokens end a generation.
TOKENIZER_FILES = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "generation_config.json",
    "vocab*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "tokenization_*.py",
)
# What families of models call the number of their blocks, and more than any has.
BLOCK_COUNTS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers"}
MOST_BLOCKS = 2_000
# Sizes of arrays, and more than any model has. MLX divides by some of them without a look.
SIZES = {
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
}
LARGEST_SIZE = 2**24
# Layers whose weights are plain numbers.
_DENSE = (nn.Linear, nn.Embedding, nn.RMSNorm)

RECURRENT_NOTE = (
    "{count} of {blocks} layers are recurrent: MLX trains them in a loop over tokens, so expect steps many "
    "times slower than with attention alone, and memory that grows with every token: "
    "keep train.max_length low"
)
# A model's tokenizer.json has some 30 MB; nothing that is read here is larger.
_LONGEST_JSON = 64 * 2**20
FLOAT16_NOTE = "the model is float16: loaded as bfloat16, since training in float16 needs loss scaling"


@dataclass(frozen=True)
class Base:
    """A loaded base model, in evaluation mode and frozen.

    Attributes:
        config: the config.json in its folder, `path`.
        fingerprint: a hash over configuration and weights; it changes when either does.
        notes: lines on what loading changed and what training it takes.
    """

    model: nn.Module
    tokenizer: TokenizerWrapper
    path: Path
    config: dict[str, Any]
    fingerprint: str
    notes: tuple[str, ...] = ()


def load_base(name: str, *, trust_remote_code: bool = False) -> Base:
    """Load a model for training or generation: the one copy of its weights.

    On the CPU backend quantised weights are dequantised to float32, since 16-bit and quantised
    products are slow there; elsewhere they stay as they are, but for float16, which becomes bfloat16.

    Raises:
        UserError: no such model, or one that mlx-lm cannot load.
    """
    path = model_path(name)
    model, config = build_model(name, trust_remote_code=trust_remote_code)
    tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    if device_name() == "cpu":
        to_float32(model)
        model.freeze()
    notes = []
    if mx.float16 in float_types(model):
        # Gradients of float16 activations fall below its smallest number (6e-8) without loss scaling, which
        # there is none of here; bfloat16 has the range of float32.
        model.set_dtype(mx.bfloat16, predicate=lambda dtype: dtype == mx.float16)
        notes.append(FLOAT16_NOTE)
    if recurrent := recurrent_layers(model):
        notes.append(RECURRENT_NOTE.format(count=recurrent, blocks=len(model.layers)))
    if float_types(model) == {mx.float32}:
        keep_float32_exact()
    mx.eval(model.parameters())
    return Base(model, tokenizer, path, config, fingerprint(path), tuple(notes))


def build_model(name: str, *, trust_remote_code: bool = False) -> tuple[nn.Module, dict[str, Any]]:
    """A frozen model in evaluation mode, and its config.json; no weight is read before it is used.

    Its layers compute as they do in training, so that what they keep can be estimated.

    Raises:
        UserError: no such model, or one that mlx-lm cannot load.
    """
    path = model_path(name)
    _check_config(path)
    for shard in sorted(path.glob("model*.safetensors")):
        read_header(shard)
        if not glob.glob(str(shard)):
            raise UserError(
                f"model {name}: mlx-lm takes *, ? and [ in a path for a pattern; rename the folder"
            )
    try:
        model, config = load_model(path, lazy=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        # A model's own class is built from whatever its config.json says, and may raise anything.
        raise UserError(f"model {name}: mlx-lm cannot load it: {first_line(error)}") from error
    for layer, module in model.named_modules():
        if isinstance(module, _DENSE) and not mx.issubdtype(module.weight.dtype, mx.floating):
            raise UserError(
                f"model {name}: {layer}.weight: expected floating-point numbers, got {module.weight.dtype}"
            )
    if device_name() == "cpu":
        take_swiglu(model)
    model.freeze()
    model.eval()
    return model, config


def _check_config(folder: Path) -> None:
    """Refuse a config.json with which mlx-lm would build blocks without end, or MLX abort the process."""
    file = folder / "config.json"
    config = read_json_object(file)
    problems = []
    for key, value in _numbers(config, ""):
        name, got = key.rpartition(".")[2], str(value)[:40]
        if name in BLOCK_COUNTS and value > MOST_BLOCKS:
            problems.append(f"{file} {key}: expected at most {MOST_BLOCKS:,}, got {got}")
        elif name in SIZES and (isinstance(value, bool) or not 1 <= value <= LARGEST_SIZE):
            problems.append(f"{file} {key}: expected 1 to {LARGEST_SIZE:,}, got {got}")
        elif name == "bits" and not 1 <= value <= 32:
            problems.append(f"{file} {key}: expected 1 to 32, got {got}")
        elif name == "group_size" and value == 0:
            problems.append(f"{file} {key}: expected another number than 0")
    width, quantised = config.get("hidden_size"), config.get("quantization")
    group = quantised.get("group_size") if isinstance(quantised, dict) else None
    if isinstance(width, int) and isinstance(group, int) and width < group:
        problems.append(
            f"{file} hidden_size: expected at least quantization.group_size, {group}, got {width}"
        )
    if problems:
        raise UserErrors([UserError(problem) for problem in problems])


def _numbers(value: dict[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    """The numbers of an object and of those in it, by their dotted keys; JSON is never too deep for this."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _numbers(item, f"{prefix}{key}.")
        elif isinstance(item, int | float):
            yield f"{prefix}{key}", item


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> TokenizerWrapper:
    """The model's tokenizer with its end-of-turn tokens; its weights are not touched.

    Raises:
        UserError: no such model, or no tokenizer that transformers can read.
    """
    path = model_path(name)
    try:
        eos = load_config(path).get("eos_token_id")
        tokenizer = load_mlx_tokenizer(path, {"trust_remote_code": trust_remote_code}, eos_token_ids=eos)
        # A value of the wrong type shows itself only in use; transformers makes an empty one of no files.
        ids = tokenizer._tokenizer("a")["input_ids"]
        tokenizer._tokenizer.decode(ids, skip_special_tokens=True)
        if not ids:
            raise ValueError("it has no token for the letter a; is its tokenizer.json there?")
    except Exception as error:
        # `tokenizers` raises bare Exceptions, and transformers whatever a value of the wrong type leads to.
        raise UserError(f"model {name}: its tokenizer cannot be read: {first_line(error)}") from error
    return tokenizer


def model_path(name: str) -> Path:
    """The folder of a model given as a `demo:` name, a folder, a GGUF file (converted once into the cache) or
    a hub id (downloaded once by mlx-lm).

    Raises:
        UserError, UserErrors: the folder does not exist or is no model, the file cannot be converted, or the
            hub id cannot be had.
    """
    if name.startswith("demo:"):
        return resolve(name)
    path = Path(name).expanduser()
    if is_gguf(name) and not path.is_dir():
        return cached_folder(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(
                f"model {name}: no config.json in this folder; expected a model in mlx-lm's layout"
            )
        return path
    if looks_local(name):
        raise UserError(
            f"model {name}: no such folder; expected a model folder, a .gguf file, a hub id (org/name) or "
            "demo:model"
        )
    return _from_hub(name)


def looks_local(name: str) -> bool:
    """Whether a name can only be a path: a hub id has exactly one slash and no leading dot or slash."""
    return name.count("/") != 1 or name.startswith((".", "/", "~"))


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

    try:
        return Path(snapshot_download(name, allow_patterns=DEFAULT_ALLOW_PATTERNS))
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"model {name}: no such folder, and the hub cannot be reached "
            "(offline, or HF_HUB_OFFLINE is set); download it first or give a folder"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"model {name}: no such folder, and the hub says: {first_line(error)}") from error


def to_float32(model: nn.Module) -> None:
    """Replace quantised layers by dense ones and cast every weight to float32, in place."""
    replaced = []
    for name, module in model.named_modules():
        dense = dense_layer(module)
        if dense is not None:
            mx.eval(dense.parameters())
            replaced.append((name, dense))
    model.update_modules(tree_unflatten(replaced))
    model.set_dtype(mx.float32)


def recurrent_layers(model: nn.Module) -> int:
    """Layers that keep a state instead of keys and values: gated delta nets, Mamba and the like."""
    return sum(isinstance(cache, ArraysCache) for cache in make_prompt_cache(text_model(model)))


def dense_layer(module: nn.Module) -> nn.Module | None:
    """The float32 layer of a quantised one, not evaluated; None for any other module."""
    if not isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding | QuantizedSwitchLinear):
        return None
    # mx.dequantize computes in the type of the scales: 16 bits would round what the quantised numbers say.
    # The other modes have no biases, and scales of 8 bits.
    scales, biases = module.scales, module.get("biases")
    if biases is not None:
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    weight = mx.dequantize(
        module.weight,
        scales,
        biases,
        group_size=module.group_size,
        bits=module.bits,
        mode=module.mode,
    ).astype(mx.float32)
    if isinstance(module, nn.QuantizedEmbedding):
        dense: nn.Module = nn.Embedding(1, 1)
    elif isinstance(module, QuantizedSwitchLinear):
        dense = SwitchLinear(1, 1, 1, bias="bias" in module)
    else:
        dense = nn.Linear(1, 1, bias="bias" in module)
    dense.weight = weight
    if "bias" in module:
        dense.bias = module.bias.astype(mx.float32)
    return dense


def fingerprint(folder: Path) -> str:
    """A hash over config.json, the weight files (sampled when large) and the code of a folder, in hex."""
    digest = hashlib.sha256()
    for file in entries(folder, "*.safetensors") + entries(folder, "*.json") + entries(folder, "*.py"):
        if file.suffix == ".json" and file.name not in {"config.json", "adapter_config.json"}:
            continue
        digest.update(file.name.encode())
        digest.update(file_hash(file))
    return digest.hexdigest()


def tokenizer_fingerprint(folder: Path) -> str:
    """A hash over the tokenizer's files and the chat templates of a model's folder, in hex.

    It changes with any byte that may change a prompt's token ids or the ids that end an answer; nothing is
    loaded for it.
    """
    digest = hashlib.sha256()
    files = {file for pattern in TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file()}
    for file in sorted(files):
        digest.update(f"{file.relative_to(folder)}\0".encode("utf-8", "surrogateescape"))
        digest.update(file_hash(file))
    return digest.hexdigest()


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, by its keys. NaN and Infinity are read, as Python writes them.

    Raises UserError with the file and what is wrong: not there, a folder, not UTF-8, not JSON, nested too
    deep, something else than an object.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LONGEST_JSON + 1)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(content) > _LONGEST_JSON:
        raise UserError(f"{path}: larger than {_LONGEST_JSON // 2**20} MB; expected a JSON object")
    try:
        value = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"{path}: not valid JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not usable JSON: nested too deep") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object {{...}}, got {type(value).__name__}")
    return value


def first_line(error: BaseException) -> str:
    """An exception as one line for a message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
