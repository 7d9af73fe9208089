"""How much fits in memory: how many rows a pass takes, and what a training step takes.

Where no gradient is taken, a pass over many tokens has two bounds. Memory is one. The other is time: on a
Mac whose display is on, the system ends a GPU command that runs for long, and a command is a few layers'
products over all tokens of the pass. Some thousand tokens keep a GPU busy; more only make the command longer.

What training takes is estimated from a model's files and the shape of a micro-batch. What the forward pass
leaves for the backward pass is counted array by array, as MLX's gradients of a transformer block need them.
What comes on top at the peak is less exact: MLX queues up to a hundred small operations ahead on the CPU and
ten command buffers on a GPU, so that more arrays are alive than the computation needs. The figures for it
are of the CPU backend, where steps of small models took within 10% of the estimate (a random choice of shapes
within 15% with recomputed blocks). On a GPU it was not measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache, RotatingKVCache, make_prompt_cache

from localdpo.data.batches import Shape
from localdpo.model.arrays import float_types, read_header
from localdpo.model.backend import device_name, memory_limit
from localdpo.model.cpu import takes_swiglu
from localdpo.model.head import chunk_size, text_model
from localdpo.model.lora import LeanLoRALinear
from localdpo.model.packed import segments_for_attention

# Tokens of one pass without gradients, padding included.
PASS_TOKENS: Final = 2**12
# Of the memory that is free, what keys and values may take; the rest is for the pass itself.
SHARE: Final = 0.5
# Keys and values of a token in a model that does not say its sizes: those of an 8B model in 16 bits.
UNKNOWN_BYTES: Final = 2 * 36 * 1024 * 2

# Bytes of a float32 number.
FLOAT = 4
# A safetensors file begins with the length of its header in so many bytes.
_LENGTH_BYTES = 8
# Arrays of an MLP's inner size that are kept of each token: gate, its sigmoid, its SiLU, up, and the product
# of both, which is also what the last adapter is fed.
GATES = 5
# Copies of the adapter: its weights, their gradients, and Adam's two moments.
ADAPTER_COPIES = 4
# Buffers of a chunk of logits that are alive together, of one chunk and of a chain of them (see `head`).
LIVE_LOGITS = {False: 7, True: 8}
# Models whose queries and keys are normalised, each by head or all together.
NORMED_HEADS = ("qwen3", "qwen3_moe", "gemma3", "gemma3_text", "olmo2")
# Arrays of the size of a recurrent layer's state that are kept of each token, since MLX differentiates such a
# layer as a loop over tokens: 2.4 to 2.6 were measured.
KEPT_STATES = 2.5
# Heads, rows and columns of that state.
STATE_SIZES = ("linear_num_value_heads", "linear_key_head_dim", "linear_value_head_dim")
# Models with a norm after attention and MLP besides those before.
POST_NORMED = ("gemma2", "gemma3", "gemma3_text")


def rows_in_pass(tokens: int, most: int) -> int:
    """Rows of `tokens` tokens, padding included, that go through a model together: 1 to `most`."""
    return min(most, max(1, PASS_TOKENS // max(1, tokens)))


def answers_at_once(model: nn.Module, tokens: int, most: int) -> int:
    """Answers of `tokens` tokens, with their prompts, whose keys and values fit together: 1 to `most`.

    It changes no answer but by rounding.
    """
    free = memory_limit(device_name()) - mx.get_active_memory()
    return min(most, max(1, int(SHARE * free) // (max(1, tokens) * cache_bytes(model))))


def cache_bytes(model: nn.Module) -> int:
    """Bytes of a token's keys and values over all layers that keep some, 1 at least."""
    text = text_model(model)
    args = getattr(text, "args", None)
    heads = getattr(args, "num_attention_heads", None)
    hidden = getattr(args, "hidden_size", None)
    size = getattr(args, "head_dim", None) or (hidden // heads if hidden and heads else None)
    kept = getattr(args, "num_key_value_heads", None) or heads
    if not (isinstance(size, int) and isinstance(kept, int)):
        return UNKNOWN_BYTES
    layers = sum(isinstance(cache, KVCache | RotatingKVCache) for cache in make_prompt_cache(text))
    width = 4 if float_types(model) == {mx.float32} else 2
    return max(1, 2 * layers * kept * size * width)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, by part.

    `adapter` counts its gradients and moments too; `activations` are kept from the forward pass for the
    backward pass; `working` is what comes on top, logits or the gradients inside a block.
    """

    weights: int
    adapter: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.working


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that decide how much memory its training takes.

    Attributes:
        stored, weights: bytes of its weights on disk and once loaded.
        width: bytes of an activation.
        norm_width: bytes of the copy of a norm's input that is kept: MLX's CPU backend has no fused norm and
            computes it in float32.
        inner: intermediate size of the MLP; of a mixture of experts, of those that a token takes together.
        query, keys: columns of the queries and of the keys, over all heads (not always the hidden size).
        recurrent, state: blocks that keep a recurrent state (gated delta nets), and numbers in it.
    """

    stored: int
    weights: int
    width: int
    norm_width: int
    blocks: int
    hidden: int
    inner: int
    vocabulary: int
    heads: int
    query: int
    keys: int
    normed_heads: bool
    norms: int
    recurrent: int = 0
    state: int = 0

    @property
    def block_weights(self) -> int:
        """Numbers in the linear layers of a block."""
        return 2 * self.hidden * (self.query + self.keys) + 3 * self.hidden * self.inner


@dataclass(frozen=True)
class BatchShape:
    """What a micro-batch computes, padding included.

    Attributes:
        tokens: that run through the blocks.
        keys: columns of keys and values that attention takes, those of a prompt once for each response.
        scores: products of a query and a key in each head; `most_scores`: of those that are taken at once.
        scored: tokens whose logits are taken.
    """

    tokens: int
    keys: int
    scores: int
    most_scores: int
    scored: int

    @classmethod
    def line(cls, contexts_P: np.ndarray, lengths_KP: np.ndarray) -> BatchShape:
        """A line of contexts and responses of these lengths (see `packed`), not traced."""
        scored = int(lengths_KP.sum())
        tokens = int(contexts_P.sum()) + scored
        if not (segments := segments_for_attention(contexts_P, lengths_KP)):
            return cls.masked(Shape(len(contexts_P), tokens, scored))
        scores = [count for segment in segments for count in segment.scores]
        return cls(tokens, sum(s.keys for s in segments), sum(scores), max(scores), scored)

    @classmethod
    def masked(cls, shape: Shape) -> BatchShape:
        """A line whose attention takes an array mask."""
        return cls(shape.width, shape.width, shape.width**2, shape.width**2, shape.scored)

    @classmethod
    def plain(cls, shape: Shape, sequences: int) -> BatchShape:
        """Sequences, so many a row, that share nothing."""
        tokens = shape.rows * sequences * shape.width
        return cls(tokens, tokens, tokens * shape.width, tokens * shape.width, shape.scored)


def kept_gates(model: nn.Module) -> int:
    """Arrays of an MLP's inner size that are kept of each token in a model with its adapters."""
    if not takes_swiglu(model):
        return GATES
    # No SiLU, and no product but for adapters that are mlx-lm's own (see `cpu.factors_of`).
    down = [module for name, module in model.named_modules() if name.endswith("down_proj")]
    return 3 + any("lora_a" in module and type(module) is not LeanLoRALinear for module in down)


def text_config(folder: Path) -> dict[str, Any]:
    """A model's config.json, that of its text part on top."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return {**config, **config.get("text_config", {})}


def model_shape(folder: Path, *, cpu: bool) -> ModelShape:
    """The sizes of the model in a folder. On the CPU every weight is loaded as float32.

    Raises:
        KeyError: the configuration has other names than the usual ones (GPT-2's n_embd).
        TypeError: it has a list of sizes for its blocks.
    """
    config = text_config(folder)
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    size = int(config.get("head_dim") or hidden // heads)
    stored, dense, floats = _weight_bytes(folder, config)
    width = FLOAT if cpu or floats == {"F32"} else 2
    inner = int(config.get("moe_intermediate_size") or config.get("intermediate_size", 4 * hidden))
    kind = config.get("model_type", "")
    return ModelShape(
        stored=stored,
        weights=dense if cpu else stored,
        width=width,
        norm_width=FLOAT if cpu else width,
        blocks=int(config["num_hidden_layers"]),
        hidden=hidden,
        inner=inner * int(config.get("num_experts_per_tok") or 1),
        vocabulary=int(config["vocab_size"]),
        heads=heads,
        query=heads * size,
        keys=int(config.get("num_key_value_heads") or heads) * size,
        normed_heads=kind in NORMED_HEADS,
        norms=4 if kind in POST_NORMED else 2,
        recurrent=_recurrent(config),
        state=math.prod(int(config.get(name) or 0) for name in STATE_SIZES),
    )


def estimate(
    model: ModelShape,
    batch: BatchShape,
    *,
    adapter: int,
    adapted: int,
    checkpoint: bool,
    chunk_bytes: int,
    dora: bool = False,
    gates: int = GATES,
    lanes: int = 1,
) -> MemoryEstimate:
    """The estimate for a step over micro-batches of one shape.

    Args:
        adapter: bytes of the adapter's weights.
        adapted: blocks that carry adapters; those below them keep nothing.
        checkpoint: whether blocks are recomputed, so that only their inputs are kept.
        chunk_bytes: of a chunk of logits (see `head`).
        gates: what `kept_gates` says of the model.
        lanes: micro-batches that are computed at the same time (see `lanes`).
    """
    scores, most_scores = (model.heads * n * model.width for n in (batch.scores, batch.most_scores))
    if checkpoint:
        kept = adapted * batch.tokens * model.hidden * model.width
        # A block is recomputed and differentiated while operations of the next one are queued. Adapted
        # layers of 16-bit inputs have more passes. It keeps the product of SwiGLU (see
        # `cpu.factors_forgotten`), and takes as much with either SwiGLU, as measured.
        live = 2.3 if model.width == FLOAT else 2.65
        working = live * (_kept(model, batch, dora=dora, gates=GATES) - scores) + scores + most_scores
    else:
        kept = adapted * _kept(model, batch, dora=dora, gates=gates)
        # Cotangents of the MLP (4 arrays, and a product that is multiplied again), of the residual stream and
        # a norm (2), and of queries, keys and values before and after they are transposed (3), with
        # operations of the next block that are queued. Where attention's scores are large, theirs come
        # instead of the MLP's: all, and 1.3 times those that are taken at once. What is alive was measured,
        # in steps where one of them was larger than the rest.
        projections = 2 * model.hidden + 3 * (model.query + 2 * model.keys)
        mlp = 1.3 * batch.tokens * ((4 + (gates < GATES)) * model.inner + projections) * model.width
        attention = batch.tokens * projections * model.width + 0.7 * scores + 1.3 * most_scores
        working = max(mlp, attention)
    working += _copies(model, batch)
    # What the states of a hybrid take while they are differentiated was measured.
    states = int(batch.tokens * KEPT_STATES * FLOAT * model.state)
    if model.recurrent:
        working += (1.65 if checkpoint else 0.55) * states
    if not checkpoint:
        kept += states * min(adapted, model.recurrent)
    chunk = min(chunk_size(model.vocabulary, chunk_bytes), batch.scored)
    logits = LIVE_LOGITS[batch.scored > chunk] * FLOAT * model.vocabulary * chunk
    return MemoryEstimate(
        weights=model.weights,
        adapter=ADAPTER_COPIES * adapter,
        activations=lanes * kept,
        working=lanes * int(max(working, logits)),
    )


def operations(model: ModelShape, batch: BatchShape, *, rank: int, checkpoint: bool) -> int:
    """Additions and multiplications of a micro-batch's gradients, those of matrix products alone.

    A product of a frozen matrix is taken twice, for the value and for the gradient of its input; those of
    attention and of the adapters (on all seven projections, of this rank) three times; all but the head's
    once more where blocks are recomputed.
    """
    tokens = batch.tokens
    frozen = 2 * tokens * model.block_weights
    attention = 2 * 2 * model.query * batch.scores
    columns = 7 * model.hidden + 2 * (model.query + model.keys) + 3 * model.inner
    adapters = 2 * tokens * rank * columns
    block = (2 + checkpoint) * frozen + (3 + checkpoint) * (attention + adapters)
    return model.blocks * block + 2 * 2 * batch.scored * model.hidden * model.vocabulary


def _kept(model: ModelShape, batch: BatchShape, *, dora: bool, gates: int) -> int:
    """Bytes that are kept for the gradient of one block."""
    tokens = batch.tokens
    heads = model.query + model.keys if model.normed_heads else 0
    normed = model.norms * model.hidden + heads
    # For the adapters: the outputs of two norms (shared by query, key and value; by gate and up), and the
    # output of attention. For attention: scaled queries. For the MLP: its gates.
    linear = 2 * model.hidden + 2 * model.query + gates * model.inner
    # Attention is not fused where a gradient is taken, so the softmax of all heads is kept, and keys and
    # values. CUDA's fused kernel takes the mask in the place of the softmax, in the same size.
    kept = tokens * (normed * model.norm_width + linear * model.width)
    kept += model.heads * batch.scores * model.width + 2 * batch.keys * model.keys * model.width
    if dora:
        # What the magnitudes multiply, the copies too (it is mlx-lm's own layer), and the dense weights.
        outputs = model.query + 2 * model.keys + 2 * model.hidden + 2 * model.inner
        kept += tokens * outputs * model.width + _copies(model, batch) + model.block_weights * model.width
    return kept


def _copies(model: ModelShape, batch: BatchShape) -> int:
    """Bytes of 16-bit inputs of a block's adapters in float32, rebuilt there (see `lora.LeanLoRALinear`)."""
    inputs = 5 * model.hidden + model.query + model.inner
    return batch.tokens * FLOAT * inputs if model.width < FLOAT else 0


def _recurrent(config: Mapping[str, Any]) -> int:
    """Blocks that are gated delta nets."""
    if not all(config.get(name) for name in STATE_SIZES):
        return 0
    kinds = config.get("layer_types")
    if isinstance(kinds, list):
        return sum(kind == "linear_attention" for kind in kinds)
    blocks = int(config["num_hidden_layers"])
    return blocks - blocks // int(config.get("full_attention_interval") or 4)


def _weight_bytes(folder: Path, config: Mapping[str, Any]) -> tuple[int, int, set[str]]:
    """Bytes of the weights as stored and with every parameter as float32, and the floating-point types."""
    stored = dense = 0
    floats = set()
    quantization = config.get("quantization") or {}
    for file in folder.glob("model*.safetensors"):
        with file.open("rb") as stream:
            header = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        stored += file.stat().st_size - _LENGTH_BYTES - header
        for name, (dtype, shape) in read_header(file).items():
            if dtype in ("F32", "F16", "BF16"):
                floats.add(dtype)
            if not name.endswith((".scales", ".biases")):
                # Layers may have bits of their own.
                own = quantization.get(name.removesuffix(".weight"))
                bits = int((own if isinstance(own, dict) else quantization).get("bits", 4))
                numbers = math.prod(shape)
                dense += FLOAT * (numbers * 32 // bits if dtype == "U32" else numbers)
    return stored, dense, floats
