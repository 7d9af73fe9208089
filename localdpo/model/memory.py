"""An estimate of the memory that a run needs, from the model's configuration and the longest batch.

It adds up what is known: weights, adapter with its gradients and moments, activations kept for the
backward pass, one chunk of logits. It leaves out the allocator's slack, so it is a lower figure and
is shown as an estimate.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localdpo.model.head import CHUNK_BYTES, chunk_size

# Arrays of [tokens, hidden] that one block keeps for its backward pass: two norms and their inputs,
# queries, attention output, its projection, two residual sums.
KEPT_PER_BLOCK = 8
# Arrays of [tokens, intermediate size]: gate, up and their product.
KEPT_PER_MLP = 3


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes, by part."""

    weights: int
    adapter: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return self.weights + self.adapter + self.activations + self.logits


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
    """
    config = json.loads((folder / "config.json").read_text())
    config = {**config, **config.get("text_config", {})}
    hidden, blocks = int(config["hidden_size"]), int(config["num_hidden_layers"])
    inner = int(config.get("intermediate_size", 4 * hidden))
    vocabulary = int(config["vocab_size"])
    heads = int(config.get("num_attention_heads", 1))
    width = 4 if cpu else 2
    tokens = rows * (prompt_tokens + responses * response_tokens)
    scores = (
        heads * rows * (prompt_tokens**2 + responses * response_tokens * (prompt_tokens + response_tokens))
    )
    block = tokens * (KEPT_PER_BLOCK * hidden + KEPT_PER_MLP * inner) * width + (scores * 4 if cpu else 0)
    kept = block + blocks * tokens * hidden * width if checkpoint else blocks * block
    adapter = blocks * rank * (8 * hidden + 3 * (hidden + inner) + 6 * hidden)
    return MemoryEstimate(
        weights=_weight_bytes(folder, config, cpu=cpu),
        adapter=4 * 4 * adapter,
        activations=kept,
        logits=12
        * 4
        * vocabulary
        * min(
            chunk_size(vocabulary, CHUNK_BYTES["cpu" if cpu else "metal"]), rows * responses * response_tokens
        ),
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
