"""Twenty steps of DPO on a random 4-bit model, four ways, by the worker itself; a table, and JSON on demand.

    python tests/device/steps.py FOLDER [--questions] [--seconds N] [--small] [--json FILE]

FOLDER gets the model and the runs, and holds the output of `doctor --check` as check.txt if that ran before.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import yaml
from mlx.utils import tree_flatten
from mlx_lm.models import qwen3

from localdpo.core.names import BUNDLE
from localdpo.model.backend import Backend, memory_limit, prepare
from localdpo.records.events import read_events
from localdpo.records.rundir import RunDir
from localdpo.train.selfcheck.__main__ import PRIVATE, checks

# Qwen3-0.6B's config.json.
SHAPE: dict[str, Any] = {
    "model_type": "qwen3",
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "vocab_size": 151_936,
    "rope_theta": 1e6,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
}
SMALL = {
    "num_hidden_layers": 2,
    "hidden_size": 128,
    "intermediate_size": 256,
    "vocab_size": 2048,
    "head_dim": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
STEPS, BATCH = 20, 8
WORDS = ("the report says that login is slow in Tokyo", "and email fails", "for many customers", "since noon")
RUN_SECONDS = 150
# (name, recomputed, traced)
WAYS = [
    ("eager", False, False),
    ("traced", False, True),
    ("eager, checkpointed", True, False),
    ("traced, checkpointed", True, True),
]


def make_model(folder: Path, *, small: bool) -> Path:
    """A random 4-bit model with bfloat16 scales and the demo's tokenizer."""
    config = {**SHAPE, **(SMALL if small else {})}
    mx.random.seed(0)
    model = qwen3.Model(qwen3.ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    nn.quantize(model, group_size=64, bits=4)
    folder.mkdir()
    for file in [*(BUNDLE / "model").glob("token*"), *(BUNDLE / "model").glob("*.jinja")]:
        shutil.copy(file, folder)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    config["quantization"] = {"group_size": 64, "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def make_pairs(file: Path, count: int, *, seed: int, longest: tuple[int, int]) -> Path:
    """Random pairs; prompts and answers of 2 to `longest` phrases."""
    rng = np.random.default_rng(seed)

    def text(most: int) -> str:
        return " ".join(rng.choice(WORDS, int(np.exp(rng.uniform(np.log(2), np.log(most))))))

    rows = [
        {"prompt": f"{n} {text(longest[0])}", "chosen": text(longest[1]), "rejected": text(longest[1])}
        for n in range(count)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def run_one(folder: Path, recipe: dict[str, Any], seconds: float) -> dict[str, Any]:
    """One run of the worker; what it left in its log."""
    run = RunDir(folder)
    run.path.mkdir()
    run.recipe.write_text(yaml.safe_dump(recipe))
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "localdpo.train", str(run.path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            env={**os.environ, "LOCALDPO_CACHE": str(folder.parent / "cache")},
        )
        code, said = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        said = (error.stdout or b"").decode(errors="replace") if isinstance(error.stdout, bytes) else ""
        code = -1
    found: dict[str, Any] = {"code": code, "seconds": time.perf_counter() - began}
    events = read_events(run.events) if run.events.exists() else []
    steps = [event.data["metrics"] for event in events if event.type == "step"]
    notes = [event.data["message"] for event in events if event.type == "notice"]
    found["notes"] = notes
    found["steps"] = steps
    if code != 0:
        found["said"] = said[-3000:]
    if steps:
        late = steps[len(steps) // 2 :]
        found["first_step_s"] = steps[0]["step_seconds"]
        found["median_step_s"] = statistics.median(step["step_seconds"] for step in late)
        found["all_steps_s"] = sum(step["step_seconds"] for step in steps)
        tokens = sum(step["tokens_per_second"] * step["step_seconds"] for step in late)
        found["tokens_per_s"] = tokens / sum(step["step_seconds"] for step in late)
        for name in steps[-1]:
            if "memory" in name:
                found[name] = max(step[name] for step in steps if name in step)
        found["loss"] = [round(step["loss"], 5) for step in steps]
    estimate = re.search(r"memory: about ([\d.]+) (GB|MB)", " ".join(notes))
    if estimate:
        found["estimate_gb"] = float(estimate[1]) / (1 if estimate[2] == "GB" else 1000)
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--questions", action="store_true", help="first what only a device can tell of MLX")
    parser.add_argument("--seconds", type=float, default=400.0, help="end after so many")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(exist_ok=True)
    end = time.monotonic() + given.seconds
    backend = prepare()
    print(f"device {backend.device}, MLX {mx.__version__}, limit {memory_limit(backend.device) / 1e9:.1f} GB")
    print(f"device_info { {k: v for k, v in mx.device_info().items() if k not in PRIVATE} }")
    check = given.folder / "check.txt"
    content: dict[str, Any] = {"device": backend.device, "mlx": mx.__version__, "steps": {}}
    content["check"] = check.read_text().splitlines() if check.exists() else []
    if given.questions:
        content["questions"] = ask(backend, given.folder, min(60.0, end - time.monotonic()))
    began = time.monotonic()
    model = make_model(given.folder / "model", small=given.small)
    longest = (8, 4) if given.small else (48, 36)
    pairs = make_pairs(given.folder / "pairs.jsonl", STEPS * BATCH, seed=0, longest=longest)
    valid = make_pairs(given.folder / "valid.jsonl", 4, seed=1, longest=longest)
    mx.clear_cache()
    print(f"the model is made in {time.monotonic() - began:.1f} s")
    results = content["steps"]
    for name, checkpoint, traced in WAYS:
        recipe = {
            "model": str(model),
            "data": {"train": str(pairs), "valid": str(valid)},
            "train": {
                "max_steps": STEPS,
                "batch_size": BATCH,
                "learning_rate": 1e-5,
                "max_length": 1024,
                "gradient_checkpointing": checkpoint,
                "compile": traced,
            },
            "eval": {"every": STEPS, "pairs": 4, "samples": 0, "kl_pairs": 0, "kl_samples": 0},
            "save": {"every": STEPS},
        }
        left = end - time.monotonic()
        if left < 5:
            print(f"-- {name}: not run, no time is left")
            continue
        print(f"-- {name}")
        found = results[name] = run_one(
            given.folder / name.replace(", ", "-"), recipe, min(left, RUN_SECONDS)
        )
        for note in found["notes"]:
            print(f"   {note}")
        if "loss" in found:
            print(f"   loss {found['loss']}")
            print(f"   seconds {[round(step['step_seconds'], 3) for step in found['steps']]}")
        if found["code"] != 0:
            print(f"   ended with code {found['code']}:\n{found.get('said', '')}")
        print(table({name: found}))
        if given.json:
            given.json.write_text(json.dumps(content, indent=1))
    print(table(results))
    return 0 if len(results) == len(WAYS) and all(found["code"] == 0 for found in results.values()) else 1


def ask(backend: Backend, folder: Path, seconds: float) -> list[str]:
    """The answers to the questions of the self-check, as its lines of JSON, each printed as it comes."""
    last = [name for name, _ in checks(backend, Path())]
    before = last[last.index("float32 products") - 1]
    process = subprocess.Popen(
        [sys.executable, "-m", "localdpo.train.selfcheck", str(folder), before],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    said = []
    assert process.stdout is not None
    with process.stdout:
        for line in process.stdout:
            if '"begin"' not in line:
                print(f"   {line.rstrip()}")
                said.append(line.rstrip())
    process.wait()
    timer.cancel()
    return said


def table(results: dict[str, dict[str, Any]]) -> str:
    """A line for each way."""
    columns: tuple[str, ...] = (
        "code",
        "seconds",
        "first_step_s",
        "median_step_s",
        "tokens_per_s",
        "estimate_gb",
    )
    for found in results.values():
        if "estimate_gb" in found and found.get("peak_memory_gb"):
            found["estimate/peak"] = found["estimate_gb"] / found["peak_memory_gb"]
    columns += tuple(sorted({name for found in results.values() for name in found if "memory_gb" in name}))
    columns += ("estimate/peak",)
    lines = [f"{'':22}" + "".join(f"{name:>17}" for name in columns)]
    for way, found in results.items():
        cells = [f"{found[name]:17.4g}" if name in found else f"{'-':>17}" for name in columns]
        lines.append(f"{way:22}" + "".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
