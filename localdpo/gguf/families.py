"""The architectures that are read from GGUF and written to it: names, shapes, order of rows, configuration.

Names are those of llama.cpp's converter (gguf-py, tensor_mapping.py). What it changes besides, and what is
undone here:

- llama: it orders the rows of the query and key projections so that rotary embeddings turn neighbours
  (2i, 2i + 1) where Hugging Face's weights turn halves (i, i + d/2). Rows are put back: what is made of the
  model later (adapters, other formats) expects Hugging Face's order. Scales belong to rows: nothing is lost.
- gemma: it stores 1 + w of a norm's weight w.
- Llama 3.1's rotary frequencies are a tensor of factors, where config.json has the four numbers behind them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from localdpo.core.errors import UserError, UserErrors
from localdpo.core.text import counted
from localdpo.gguf.file import F32, GGUFFile, Tensor

# Letters of a shape: V vocabulary, H hidden size, I of the MLP, D of a head, Q and K of all heads' queries
# and of all keys, P of queries, keys and values together, G of the MLP's gate and up projections together.
Layers = Mapping[str, tuple[str, str]]
"""Name in GGUF -> name in mlx-lm and shape."""

TOP: Final[Layers] = {
    "token_embd": ("model.embed_tokens", "VH"),
    "output_norm": ("model.norm", "H"),
    "output": ("lm_head", "VH"),
}
_BLOCK: Final[Layers] = {
    "attn_norm": ("input_layernorm", "H"),
    "attn_q": ("self_attn.q_proj", "QH"),
    "attn_k": ("self_attn.k_proj", "KH"),
    "attn_v": ("self_attn.v_proj", "KH"),
    "attn_output": ("self_attn.o_proj", "HQ"),
    "ffn_norm": ("post_attention_layernorm", "H"),
    "ffn_gate": ("mlp.gate_proj", "IH"),
    "ffn_up": ("mlp.up_proj", "IH"),
    "ffn_down": ("mlp.down_proj", "HI"),
}
_FUSED: Final[Layers] = {
    "attn_norm": _BLOCK["attn_norm"],
    "attn_qkv": ("self_attn.qkv_proj", "PH"),
    "attn_output": _BLOCK["attn_output"],
    "ffn_norm": _BLOCK["ffn_norm"],
    "ffn_up": ("mlp.gate_up_proj", "GH"),
    "ffn_down": _BLOCK["ffn_down"],
}
ATTENTION: Final = ("attn_q", "attn_k", "attn_v", "attn_output")
MLP: Final = ("ffn_gate", "ffn_up", "ffn_down")
# Factors of rotary frequencies, which go into config.json.
ROPE_FREQS, ROPE_LONG, ROPE_SHORT = (
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
)
_ROPE: Final = frozenset({ROPE_FREQS, ROPE_LONG, ROPE_SHORT})


@dataclass(frozen=True)
class Architecture:
    """An architecture.

    Attributes:
        name: `general.architecture`, and model_type in config.json.
        written: model types of config.json that are written as this architecture.
        model_class: transformers' class, for `architectures` in config.json.
        biased: projections that have a bias.
        permuted: projections whose rows GGUF has in another order.
        norm_offset: what GGUF adds to the weights of norms.
        own_head_dim: whether heads may have another size than hidden size / heads.
        partial_rope: whether only a part of a head may be turned.
        scalings: of rotary frequencies that mlx-lm's model has, by their names in config.json.
        tied: whether the head is always the embedding.
    """

    name: str
    model_class: str
    layers: Layers = field(default_factory=lambda: _BLOCK)
    written: tuple[str, ...] = ()
    biased: tuple[str, ...] = ()
    permuted: tuple[str, ...] = ()
    norm_offset: float = 0.0
    own_head_dim: bool = True
    partial_rope: bool = False
    scalings: tuple[str, ...] = ("linear", "yarn", "llama3")
    tied: bool = False


FAMILIES: Final[Mapping[str, Architecture]] = {
    family.name: family
    for family in (
        Architecture(
            "llama", "LlamaForCausalLM", written=("llama", "mistral"), permuted=("attn_q", "attn_k")
        ),
        Architecture(
            "qwen2", "Qwen2ForCausalLM", written=("qwen2",), biased=ATTENTION[:3], own_head_dim=False
        ),
        Architecture(
            "qwen3",
            "Qwen3ForCausalLM",
            written=("qwen3",),
            layers={
                **_BLOCK,
                "attn_q_norm": ("self_attn.q_norm", "D"),
                "attn_k_norm": ("self_attn.k_norm", "D"),
            },
        ),
        Architecture(
            "gemma", "GemmaForCausalLM", written=("gemma",), norm_offset=1.0, scalings=(), tied=True
        ),
        Architecture(
            "phi3",
            "Phi3ForCausalLM",
            written=("phi3",),
            layers=_FUSED,
            own_head_dim=False,
            partial_rope=True,
            scalings=("longrope",),
        ),
    )
}
# Key in GGUF below the architecture's name -> key of config.json.
COUNTS: Final = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "context_length": "max_position_embeddings",
}
# Other keys below the architecture's name that are read here.
_READ: Final = frozenset(
    {
        "attention.head_count_kv",
        "attention.key_length",
        "attention.layer_norm_rms_epsilon",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.attn_factor",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
    }
)
# Those that change nothing of what a decoder of these architectures computes: what the shapes say, too, what
# llama.cpp reads in other architectures only, and phi3's window, which llama.cpp leaves off as mlx-lm does.
_IDLE: Final = frozenset(
    {
        "attention.layer_norm_epsilon",
        "attention.sliding_window",
        "attention.value_length",
        "pooling_type",
        "rope.scaling.finetuned",
        "tensor_data_layout",
        "vocab_size",
    }
)
# Those of which one value changes nothing.
_NEUTRAL: Final[Mapping[str, float]] = {
    "attention.causal": True,
    "embedding_scale": 1.0,
    "expert_count": 0,
    "expert_used_count": 0,
    "logit_scale": 1.0,
    "residual_scale": 1.0,
    "rope.scaling.yarn_attn_factor": 1.0,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
    "rope.scaling.yarn_ext_factor": 1.0,
}
# Far more than any model has; MLX computes shapes in 32 bits.
MOST: Final = 2**24


@dataclass(frozen=True)
class NamedTensor:
    """A tensor of the model.

    Attributes:
        layer: its name in GGUF without block and `.weight` or `.bias`.
        mlx: its name in mlx-lm.
        shape: rows first.
    """

    gguf: str
    layer: str
    mlx: str
    shape: tuple[int, ...]


def family_of(file: GGUFFile) -> Architecture:
    """The architecture of a file. Raises UserError for an unknown one, and for what is no whole model."""
    kind = file.value("general.type", str, "model")
    if kind != "model":
        raise UserError(f"{file.path}: general.type: expected model, got {kind}; name the file of the model")
    parts = file.value("split.count", int, 1)
    if parts > 1:
        number = file.value("split.no", int) + 1
        raise UserError(
            f"{file.path}: split.count: this is part {number:,} of {parts:,}; put them together with "
            "`llama-gguf-split --merge FIRST-PART OUT`"
        )
    name = file.value("general.architecture", str)
    if name not in FAMILIES:
        raise UserError(
            f"{file.path}: general.architecture: {name} is not supported; "
            f"expected one of {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def items(family: Architecture, config: Mapping[str, Any]) -> Iterator[NamedTensor]:
    """Every tensor of a model with this config.json."""
    sizes = _sizes(config)

    def entries(prefix: str, inside: str, layers: Layers) -> Iterator[NamedTensor]:
        for layer, (name, letters) in layers.items():
            shape = tuple(sizes[letter] for letter in letters)
            yield NamedTensor(f"{prefix}{layer}.weight", layer, f"{inside}{name}.weight", shape)
            option = "attention_bias" if layer in ATTENTION else "mlp_bias" if layer in MLP else None
            if layer in family.biased or (option is not None and config.get(option)):
                yield NamedTensor(f"{prefix}{layer}.bias", layer, f"{inside}{name}.bias", shape[:1])

    tied = family.tied or config["tie_word_embeddings"]
    yield from entries("", "", {k: v for k, v in TOP.items() if not (tied and k == "output")})
    for block in range(config["num_hidden_layers"]):
        yield from entries(f"blk.{block}.", f"model.layers.{block}.", family.layers)


def head_dim(config: Mapping[str, Any]) -> int:
    """Numbers in a head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _sizes(config: Mapping[str, Any]) -> dict[str, int]:
    head, inner = head_dim(config), config["intermediate_size"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    return {
        "V": config["vocab_size"],
        "H": config["hidden_size"],
        "I": inner,
        "D": head,
        "Q": queries,
        "K": keys,
        "P": queries + 2 * keys,
        "G": 2 * inner,
    }


def row_order(
    family: Architecture, config: Mapping[str, Any], layer: str, *, write: bool
) -> np.ndarray | None:
    """Which row of one format is each row of the other, for a projection with another order of rows; or None.

    Args:
        write: False: rows of GGUF, in the order of Hugging Face; True: the reverse.
    """
    if layer not in family.permuted:
        return None
    heads = config["num_attention_heads" if layer == "attn_q" else "num_key_value_heads"]
    half = head_dim(config) // 2
    turned = (heads, 2, half) if write else (heads, half, 2)
    return np.arange(heads * 2 * half).reshape(turned).swapaxes(1, 2).reshape(-1)


# --- config.json ---------------------------------------------------------------------------------------


def config_of(file: GGUFFile, family: Architecture) -> dict[str, Any]:
    """config.json of the model in a file.

    Raises UserError(s): a key is missing, of another type, unknown, or says what mlx-lm cannot compute.
    """
    arch, tensors = family.name, file.tensors
    _require_known(file, arch)
    config: dict[str, Any] = {"architectures": [family.model_class], "model_type": family.name}
    config |= {name: file.value(f"{arch}.{key}", int) for key, name in COUNTS.items()}
    heads = config["num_attention_heads"]
    config["num_key_value_heads"] = file.value(f"{arch}.attention.head_count_kv", int, heads)
    _check_counts(file, config)
    default = config["hidden_size"] // heads
    config["head_dim"] = head = file.value(f"{arch}.attention.key_length", int, default)
    turned = file.value(f"{arch}.rope.dimension_count", int, head)
    problems = []
    if head % 2 or not 2 <= head <= MOST or (head != default and not family.own_head_dim):
        problems.append(f"{arch}.attention.key_length: {head} is not supported for {heads} heads of {arch}")
    if turned != head and not (family.partial_rope and 2 <= turned < head and turned % 2 == 0):
        problems.append(f"{arch}.rope.dimension_count: expected {head}, the size of a head, got {turned}")
    if problems:
        raise UserErrors([UserError(f"{file.path}: {problem}") for problem in problems])
    if turned != head:
        share = turned / head
        # mlx-lm rounds down what is multiplied again.
        config["partial_rotary_factor"] = (
            share if int(head * share) == turned else math.nextafter(share, math.inf)
        )
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        raise UserError(f"{file.path}: tensor token_embd.weight is missing")
    config["vocab_size"] = embedding.shape[0]
    config["tie_word_embeddings"] = family.tied or "output.weight" not in tensors
    config["rms_norm_eps"] = _positive(file, f"{arch}.attention.layer_norm_rms_epsilon")
    config["rope_theta"] = _positive(file, f"{arch}.rope.freq_base", 10000.0)
    if family.name == "llama":
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
    return config | _rope_scaling(file, family, config)


def _require_known(file: GGUFFile, arch: str) -> None:
    """Raise UserErrors for keys of the architecture without which the model would be another one."""
    known = _READ | _IDLE | COUNTS.keys()
    problems = []
    for key, value in file.metadata.items():
        own = key.removeprefix(f"{arch}.")
        if own == key or own in known:
            continue
        if own not in _NEUTRAL:
            problems.append(f"{key}: what this changes in a model of {arch} is not known here")
        elif isinstance(value, np.ndarray) or value != _NEUTRAL[own]:
            problems.append(f"{key}: {value} is not supported in {arch}")
    if problems:
        raise UserErrors([UserError(f"{file.path}: {problem}") for problem in problems])


def _check_counts(file: GGUFFile, config: Mapping[str, Any]) -> None:
    names = {name: key for key, name in COUNTS.items()} | {"num_key_value_heads": "attention.head_count_kv"}
    # A block has several tensors, so their number bounds that of the blocks.
    most = {"num_hidden_layers": len(file.tensors), "max_position_embeddings": 2**31 - 1}
    problems = [
        UserError(f"{file.path}: {key}: expected 1 to {most.get(name, MOST):,}, got {config[name]:,}")
        for name, key in names.items()
        if not 1 <= config[name] <= most.get(name, MOST)
    ]
    if not problems and config["num_attention_heads"] % config["num_key_value_heads"]:
        problems = [UserError(f"{file.path}: attention.head_count is no multiple of attention.head_count_kv")]
    if problems:
        raise UserErrors(problems)


def _positive(file: GGUFFile, key: str, default: float | None = None) -> float:
    """The number of a key, as `short` has it. Raises UserError for one that is not above 0, or infinite."""
    value = file.value(key, float, default)
    if not 0 < value < math.inf:
        raise UserError(f"{file.path}: {key}: expected a number above 0, got {value:g}")
    return short(value)


def short(number: float) -> float:
    """The shortest decimal number that is this one in float32: 1e-5, not 9.999999747378752e-06."""
    return float(str(np.float32(number)))


def _rope_scaling(file: GGUFFile, family: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_scaling`, and what belongs to it, from metadata and tensors of factors."""
    prefix = f"{family.name}.rope.scaling"
    kind, factor = _scaling_of(file, family)
    original, magnitude = 0, 1.0
    if kind in ("longrope", "yarn"):
        original = file.value(f"{prefix}.original_context_length", int)
        if not 2 <= original <= MOST:
            raise UserError(
                f"{file.path}: {prefix}.original_context_length: expected 2 to {MOST:,}, got {original:,}"
            )
    scaling: dict[str, Any] = {}
    if kind == "longrope":
        turned = round(config["head_dim"] * config.get("partial_rotary_factor", 1.0))
        short_factor, long_factor = (
            [short(x) for x in _factors(file, name, turned // 2)] for name in (ROPE_SHORT, ROPE_LONG)
        )
        scaling = {
            "rope_scaling": {"type": kind, "short_factor": short_factor, "long_factor": long_factor},
            "original_max_position_embeddings": original,
        }
        magnitude = longrope_magnitude(config["max_position_embeddings"], original)
    elif kind == "llama3":
        scaling = {"rope_scaling": _llama3(file, config, _factors(file, ROPE_FREQS, config["head_dim"] // 2))}
    elif kind == "yarn":
        of = {"factor": factor, "original_max_position_embeddings": original}
        scaling = {"rope_scaling": {"rope_type": kind, "type": kind, **of}}
    elif kind == "linear":
        scaling = {"rope_scaling": {"rope_type": kind, "type": kind, "factor": factor}}
    found = file.value(f"{prefix}.attn_factor", float, magnitude)
    if not math.isclose(found, magnitude, rel_tol=1e-3):
        raise UserError(
            f"{file.path}: {prefix}.attn_factor: mlx-lm has {magnitude:.6g} in this model, got {found:g}"
        )
    return scaling


def _scaling_of(file: GGUFFile, family: Architecture) -> tuple[str, float]:
    """How rotary frequencies are scaled, by the name in config.json or `none`, and the factor in metadata.

    As llama.cpp reads it: the factor may have its older name, without a type it is linear, and 0 is none.
    Raises UserError for what mlx-lm does not have in this architecture.
    """
    arch, tensors = family.name, file.tensors
    key = f"{arch}.rope.scaling.factor"
    key = key if key in file.metadata else f"{arch}.rope.scale_linear"
    factor = _positive(file, key) if file.value(key, float, 0.0) else 1.0
    kind = file.value(f"{arch}.rope.scaling.type", str, "linear")
    if kind == "linear" and factor == 1:
        kind = "none"
    where = f"{arch}.rope.scaling.type: {kind}"
    factors = {ROPE_FREQS: "llama3", ROPE_LONG: "longrope", ROPE_SHORT: "longrope"}
    if tensor := next((name for name in factors if name in tensors), None):
        if factor != 1:
            raise UserError(f"{file.path}: {key}: expected 1 beside the tensor {tensor}, got {factor:g}")
        kind, where = factors[tensor], f"tensor {tensor}"
    if kind not in ("none", *family.scalings):
        raise UserError(f"{file.path}: {where} is not supported in {arch}")
    return kind, factor


def longrope_magnitude(context: int, original: int) -> float:
    """By what LongRoPE multiplies queries and keys, as transformers and mlx-lm have it."""
    stretch = context / original
    return 1.0 if stretch <= 1 else math.sqrt(1 + math.log(stretch) / math.log(original))


def _factors(file: GGUFFile, name: str, count: int) -> np.ndarray:
    """The `count` factors in a tensor: one for each pair of numbers of a head that is turned."""
    tensor = file.tensors.get(name)
    if tensor is None or tensor.kind != F32 or tensor.shape != (count,):
        raise UserError(f"{file.path}: tensor {name}: expected {counted(count, 'number')} of type F32")
    factors = file.bytes_of(tensor).view("<f4").astype(np.float64)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise UserError(f"{file.path}: tensor {name}: expected numbers above 0")
    return factors


def llama3_factors(scaling: Mapping[str, Any], theta: float, head: int) -> np.ndarray:
    """By what Llama 3.1 divides its rotary frequencies [head / 2].

    As transformers does (modeling_rope_utils.py, _compute_llama3_parameters).
    """
    factor, low, high = (scaling[key] for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context = scaling["original_max_position_embeddings"]
    wavelengths = 2 * math.pi * theta ** (np.arange(0, head, 2) / head)
    smooth = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    return 1 / ((1 - smooth) / factor + smooth)


def _llama3(file: GGUFFile, config: Mapping[str, Any], factors: np.ndarray) -> dict[str, Any]:
    """The numbers behind the factors of Llama 3.1 and later; others are not known to config.json."""
    scaling = {
        "rope_type": "llama3",
        "factor": short(float(factors.max(initial=1.0))),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    expected = llama3_factors(scaling, config["rope_theta"], config["head_dim"])
    if not np.allclose(factors, expected, rtol=1e-3):
        raise UserError(f"{file.path}: tensor {ROPE_FREQS}: these are not the factors of Llama 3.1")
    return scaling


# --- names and shapes ----------------------------------------------------------------------------------

_SHOWN: Final = 10


def located(
    file: GGUFFile, family: Architecture, config: Mapping[str, Any]
) -> list[tuple[NamedTensor, Tensor]]:
    """Every tensor of the model, and where it is in the file.

    Raises UserErrors: tensors are missing, superfluous or of another shape, the first ten of them.
    """
    expected = {item.gguf: item for item in items(family, config)}
    problems = []
    for name, item in expected.items():
        if (tensor := file.tensors.get(name)) is None:
            problems.append(f"tensor {name} is missing")
        elif tensor.shape != item.shape:
            problems.append(f"tensor {name}: expected shape {item.shape}, got {tensor.shape}")
    extra = sorted(file.tensors.keys() - expected.keys() - _ROPE)
    problems += [f"tensor {name} has no place in {family.name}" for name in extra]
    lines = [f"{file.path}: {problem}" for problem in problems]
    if len(lines) > _SHOWN:
        lines[_SHOWN:] = [f"{file.path}: and {counted(len(lines) - _SHOWN, 'more tensor')}"]
    if lines:
        raise UserErrors([UserError(line) for line in lines])
    return [(item, file.tensors[name]) for name, item in expected.items()]
