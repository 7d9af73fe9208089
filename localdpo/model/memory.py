"""An estimate of the memory that a run needs, from the model's configuration and the longest batch.

It adds up what is known: weights, adapter with its gradients and moments, activations kept for the
backward pass, and the larger of what comes on top at two different times, chunks of logits and the
block that is being differentiated. Real steps of small models on the CPU took 0.7 to 1.4 times as much.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localdpo.core.jsonfile import read_json_object
from localdpo.model.head import CHUNK_BYTES, chunk_size

# Arrays of [tokens, hidden] that one block keeps for its backward pass: two norms and their inputs,
# queries, attention output, its projection, two residual sums.
KEPT_PER_BLOCK = 8
# Arrays of [tokens, intermediate size]: gate, up and their product.
KEPT_PER_MLP = 3
# Chunks of logits that are alive together (see `head`).
LIVE_CHUNKS = 12
# Blocks' worth of intermediates alive while one block is differentiated, beside the kept activations:
# measured, without recomputing and with it.
BACKWARD_BLOCKS = {False: 2, True: 4}


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, by part.

    `activations` are kept from the forward pass for the backward pass; `working` is what comes on top,
    logits or the gradients inside a block.
    """

    weights: int
    adapter: int
    activations: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.working


def text_config(folder: Path) -> dict[str, Any]:
    """A model's config.json, that of its text part on top. Raises UserError for a file that holds none."""
    config = read_json_object(folder / "config.json")
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config


def estimate(
    folder: Path,
    *,
    cpu: bool,
    rank: int,
    prompt_tokens: int,
    response_tokens: int,
    rows: int,
    responses: int,
    checkpoint: bool,
) -> MemoryEstimate:
    """The estimate for micro-batches of `rows` prompts with `responses` responses each.

    Args:
        folder: the model's folder.
        cpu: whether weights are dequantised to float32, as the CPU backend needs.
        prompt_tokens, response_tokens: of the longest row.
        checkpoint: whether blocks are recomputed, so that only their inputs are kept.

    Raises:
        KeyError: the configuration has other names than the usual ones (GPT-2's n_embd).
    """
    config = text_config(folder)
    hidden, blocks = int(config["hidden_size"]), int(config["num_hidden_layers"])
    inner = int(config.get("intermediate_size", 4 * hidden))
    vocabulary = int(config["vocab_size"])
    heads = int(config.get("num_attention_heads", 1))
    width = 4 if cpu else 2
    tokens = rows * (prompt_tokens + responses * response_tokens)
    scores = (
        heads * rows * (prompt_tokens**2 + responses * response_tokens * (prompt_tokens + response_tokens))
    )
    # Training takes MLX's unfused attention on every device, so the scores of all heads are kept.
    block = (tokens * (KEPT_PER_BLOCK * hidden + KEPT_PER_MLP * inner) + scores) * width
    kept = blocks * (tokens * hidden * width if checkpoint else block)
    budget = CHUNK_BYTES["cpu" if cpu else "metal"]
    chunk = min(chunk_size(vocabulary, budget), rows * responses * response_tokens)
    adapter = blocks * rank * (8 * hidden + 3 * (hidden + inner) + 6 * hidden)
    return MemoryEstimate(
        weights=_weight_bytes(folder, config, cpu=cpu),
        adapter=4 * 4 * adapter,
        activations=kept,
        working=max(BACKWARD_BLOCKS[checkpoint] * block, LIVE_CHUNKS * 4 * vocabulary * chunk),
    )


def _weight_bytes(folder: Path, config: dict[str, Any], *, cpu: bool) -> int:
    """Bytes of the weights once loaded: as stored, or every parameter as float32 on the CPU."""
    stored = dense = 0
    quantised = config.get("quantization") or {}
    for file in folder.glob("model*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            stored += end - start
            count = _product(entry["shape"])
            if entry["dtype"] == "U32":
                count = count * 32 // int(quantised.get("bits", 4))
            elif name.endswith((".scales", ".biases")):
                count = 0
            dense += 4 * count
    return dense if cpu else stored


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
