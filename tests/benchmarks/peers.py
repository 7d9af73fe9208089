"""Steps of localdpo beside those of other trainers: the same model, pairs, adapter and batches, alternating.

    python tests/benchmarks/peers.py [--rounds 2] [--steps 10] [--only localdpo,unsloth] [--ways kept]
                                     [--python unsloth=/path/to/python ...]

Each trainer runs by its own interface in a process of its own, one after the other, for some rounds, and in
two ways: with its activations kept, and recomputed (gradient checkpointing). Printed are the medians of all
its steps but the first of each run, which compiles and fills caches, and of the reference pass in seconds a
batch, where it can be told from the rest; of localdpo also the share of the machine's matmul rate: the
operations of its steps' matrix products, counted from their shapes, by what the machine reaches in the same
minute, with square products and with those of a step. Trainers have requirements that exclude each other, so
each may have an interpreter of its own; one whose packages are absent is left out:

    unsloth       unsloth_zoo, mlx-lm (off a Mac UNSLOTH_ZOO_DISABLE_GPU_INIT keeps it from looking for CUDA)
    trl           trl, peft, torch (the CPU build)
    mlx-lm-lora   mlx-lm-lora

OpenBLAS is put in front of MLX for the other trainers that use MLX, too, by LD_PRELOAD, since only localdpo
does it by itself (see `localdpo.model.backend`).
"""

from __future__ import annotations

import argparse
import ctypes.util
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

PAIRS, BATCH, RANK, VOCABULARY = 64, 4, 8, 16_000
PROMPT, RESPONSE, MAX_LENGTH = (128, 384), (48, 192), 640
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIG = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "intermediate_size": 768,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "rope_theta": 1e6,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
    "eos_token_id": 1,
}
# Whether activations are recomputed.
WAYS: Final = {"kept": False, "recomputed": True}
PACKAGES = {"localdpo": "localdpo", "unsloth": "unsloth_zoo", "trl": "trl", "mlx-lm-lora": "mlx-lm-lora"}


# --- the work ------------------------------------------------------------------------------------------


def make_work(folder: Path) -> None:
    """A random model with a tokenizer of words, and the pairs as text."""
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    rng = np.random.default_rng(0)
    heads, groups, size, hidden, inner = 4, 2, 64, 256, 768
    shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}
    for number in range(6):
        block = f"model.layers.{number}."
        shapes |= {
            f"{block}self_attn.q_proj.weight": (heads * size, hidden),
            f"{block}self_attn.k_proj.weight": (groups * size, hidden),
            f"{block}self_attn.v_proj.weight": (groups * size, hidden),
            f"{block}self_attn.o_proj.weight": (hidden, heads * size),
            f"{block}self_attn.q_norm.weight": (size,),
            f"{block}self_attn.k_norm.weight": (size,),
            f"{block}mlp.gate_proj.weight": (inner, hidden),
            f"{block}mlp.up_proj.weight": (inner, hidden),
            f"{block}mlp.down_proj.weight": (hidden, inner),
            f"{block}input_layernorm.weight": (hidden,),
            f"{block}post_attention_layernorm.weight": (hidden,),
        }
    arrays = {
        name: np.ones(shape, np.float32)
        if len(shape) == 1
        else rng.normal(0, shape[-1] ** -0.5, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    model = folder / "model"
    model.mkdir()
    save_file(arrays, model / "model.safetensors", {"format": "pt"})
    (model / "config.json").write_text(json.dumps(CONFIG))
    words = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {f"w{n}": n for n in range(3, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        # Some insist on one: this adds nothing.
        chat_template="{% for message in messages %}{{ message['content'] }} {% endfor %}",
    ).save_pretrained(model)

    def text(span: tuple[int, int]) -> str:
        count = rng.integers(span[0], span[1] + 1)
        return " ".join(f"w{n}" for n in rng.integers(3, VOCABULARY, count))

    with (folder / "pairs.jsonl").open("w") as file:
        for _ in range(PAIRS):
            prompt = text(PROMPT)
            row = {"prompt": prompt + " ", "chosen": text(RESPONSE), "rejected": text(RESPONSE)}
            file.write(json.dumps(row) + "\n")


# --- the trainers: each calls `stamp` when a step is done ----------------------------------------------

# Seconds and pairs of the reference pass, where a trainer's can be told from the rest.
REFERENCE: list[tuple[float, int]] = []


# Operations of the matrix products of each step, of localdpo.
OPERATIONS: list[int] = []


def timed(function: Callable[..., Any], pairs: Callable[..., int]) -> Callable[..., Any]:
    """`function`, which makes a pass of the reference over some pairs."""

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        count, began = pairs(*args), time.perf_counter()
        result = function(*args, **kwargs)
        REFERENCE.append((time.perf_counter() - began, count))
        return result

    return wrapped


def run_localdpo(folder: Path, steps: int, checkpoint: bool, stamp: Callable[[], None]) -> None:
    import localdpo
    from localdpo.model.forward import lengths_of
    from localdpo.model.memory import BatchShape, model_shape, operations
    from localdpo.train.data import Feed
    from localdpo.train.reference import ReferenceScores

    sizes, feed = model_shape(folder / "model", cpu=True), Feed.batches

    def counted(self: Feed, step: int) -> Any:
        lines = [BatchShape.line(*lengths_of(batch)) for batch in feed(self, step)]
        OPERATIONS.append(sum(operations(sizes, line, rank=RANK, checkpoint=checkpoint) for line in lines))
        return feed(self, step)

    feeding: Any = Feed
    feeding.batches = counted
    passing: Any = ReferenceScores
    passing.fill = timed(passing.fill, lambda scores, *_: sum(map(len, scores.todo())))
    recipe = folder / "dpo.yaml"
    recipe.write_text(f"model: {folder / 'model'}\ndata:\n  train: {folder / 'pairs.jsonl'}\n")
    overrides = [
        f"lora.rank={RANK}",
        f"train.batch_size={BATCH}",
        f"train.max_steps={steps}",
        f"train.gradient_checkpointing={'true' if checkpoint else 'false'}",
        "train.reference=ahead",
        "eval.samples=0",
        f"train.max_length={MAX_LENGTH}",
    ]

    def on_event(event: Any) -> None:
        if event.type == "step":
            stamp()

    name = f"peers-{os.getpid()}"
    localdpo.train(recipe, overrides, runs_dir=folder / "runs", name=name, in_process=True, on_event=on_event)


def run_unsloth(folder: Path, steps: int, checkpoint: bool, stamp: Callable[[], None]) -> None:
    from datasets import Dataset
    from unsloth_zoo.mlx import trainer
    from unsloth_zoo.mlx.loader import FastMLXModel
    from unsloth_zoo.mlx.trainer import MLXDPOConfig, MLXDPOTrainer

    trainer.precompute_reference_logps = timed(
        trainer.precompute_reference_logps, lambda plan, *_: len(plan.rows)
    )
    model, tokenizer = FastMLXModel.from_pretrained(
        str(folder / "model"), max_seq_length=MAX_LENGTH, load_in_4bit=False, dtype="float32"
    )
    model = FastMLXModel.get_peft_model(
        model,
        r=RANK,
        lora_alpha=20 * RANK,
        target_modules=PROJECTIONS,
        use_gradient_checkpointing="mlx" if checkpoint else False,
    )

    class Stamps:
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
            stamp()
            return control

    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    config = MLXDPOConfig(
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        max_steps=steps,
        learning_rate=1e-5,
        optim="adamw",
        beta=0.1,
        precompute_ref_log_probs=True,
        max_length=MAX_LENGTH,
        max_prompt_length=MAX_LENGTH,
        max_seq_length=MAX_LENGTH,
        output_dir=str(folder / "unsloth"),
        gradient_checkpointing=checkpoint,
    )
    MLXDPOTrainer(model, tokenizer, Dataset.from_list(rows), args=config, callbacks=[Stamps()]).train()


def run_trl(folder: Path, steps: int, checkpoint: bool, stamp: Callable[[], None]) -> None:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    torch.set_num_threads(len(os.sched_getaffinity(0)))

    class Stamps(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            stamp()

    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    config = DPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=1e-5,
        beta=0.1,
        precompute_ref_log_probs=True,
        max_length=MAX_LENGTH,
        gradient_checkpointing=checkpoint,
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
    )
    DPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        peft_config=LoraConfig(r=RANK, lora_alpha=20 * RANK, target_modules=PROJECTIONS),
        callbacks=[Stamps()],
    ).train()


def run_mlx_lm_lora(folder: Path, steps: int, checkpoint: bool, stamp: Callable[[], None]) -> None:
    import mlx.core as mx
    import mlx.optimizers as optim
    from mlx_lm import load
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm_lora.trainer.datasets import DPODataset
    from mlx_lm_lora.trainer.dpo_trainer import DPOTrainingArgs, train_dpo

    # It asks for what only Metal tells.
    told = mx.device_info
    mx.device_info = lambda: {"max_recommended_working_set_size": 0, **told()}

    def loaded() -> tuple[Any, Any]:
        model, tokenizer = load(str(folder / "model"))
        model.freeze()
        return model, tokenizer

    model, tokenizer = loaded()
    linear_to_lora_layers(model, -1, {"rank": RANK, "scale": 20.0, "dropout": 0.0})
    reference, _ = loaded()

    class Stamps(TrainingCallback):  # type: ignore[misc]
        def on_train_loss_report(self, info: dict[str, Any]) -> None:
            stamp()

    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    args = DPOTrainingArgs(
        batch_size=BATCH,
        iters=steps,
        steps_per_report=1,
        steps_per_eval=10**6,
        steps_per_save=10**6,
        val_batches=1,
        max_seq_length=MAX_LENGTH,
        adapter_file=folder / "mlx-lm-lora.safetensors",
        grad_checkpoint=checkpoint,
        beta=0.1,
    )
    data = DPODataset(rows, tokenizer)
    train_dpo(
        model=model,
        ref_model=reference,
        optimizer=optim.AdamW(1e-5),
        train_dataset=data,
        val_dataset=data,
        args=args,
        training_callback=Stamps(),
    )


TRAINERS = {
    "localdpo": run_localdpo,
    "unsloth": run_unsloth,
    "trl": run_trl,
    "mlx-lm-lora": run_mlx_lm_lora,
}


# --- one run, in its own process; and all of them -------------------------------------------------------


def matmul_rates() -> tuple[float, float]:
    """Operations a second of square products, and of those of a step: a pair's linear layers, both ways."""
    import mlx.core as mx

    from localdpo.train.selfcheck.probes import matmul_rate

    hidden, inner, tokens = (
        CONFIG["hidden_size"],
        CONFIG["intermediate_size"],
        sum(PROMPT) // 2 + sum(RESPONSE),
    )
    sides = [(hidden, 256), (hidden, 128), (256, hidden), (hidden, inner), (inner, hidden)]
    x = {side: mx.random.normal((tokens, side)) for side in {rows for pair in sides for rows in pair}}
    w = {side: mx.random.normal(side) for side in sides}
    mx.eval(x, w)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        mx.eval([(x[rows] @ w[rows, columns], x[columns] @ w[rows, columns].T) for rows, columns in sides])
        times.append(time.perf_counter() - began)
    operations = sum(2 * 2 * tokens * rows * columns for rows, columns in sides)
    return matmul_rate(mx.float32)[0], operations / statistics.median(times)


def child(name: str, folder: Path, steps: int, checkpoint: bool) -> None:
    """Run one trainer and print what it took as a line of JSON on descriptor 3."""
    began = time.perf_counter()
    times: list[float] = []
    TRAINERS[name](folder, steps, checkpoint, lambda: times.append(time.perf_counter()))
    peak = 0.0
    if "mlx.core" in sys.modules:
        import mlx.core as mx

        peak = mx.get_peak_memory() / 1e9
    result = {
        "steps": [after - before for before, after in pairwise(times)],
        "reference": [seconds * BATCH / pairs for seconds, pairs in REFERENCE if pairs],
        "total": time.perf_counter() - began,
        "peak": peak,
        "resident": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
        "version": importlib.metadata.version(PACKAGES[name]),
        "operations": OPERATIONS[1:],
        "rates": matmul_rates() if OPERATIONS else (),
    }
    os.write(3, json.dumps(result).encode())


def environment_of(name: str, cache: Path) -> dict[str, str]:
    """The environment of a trainer's process: offline, each with the fastest BLAS that it can have."""
    environment = os.environ | {
        "UNSLOTH_ZOO_DISABLE_GPU_INIT": "1",
        "HF_HUB_OFFLINE": "1",
        "LOCALDPO_CACHE": str(cache),
    }
    blas = ctypes.util.find_library("openblas")
    # PyTorch brings a library of its own, and would take this one's products for it.
    if blas is not None and name not in ("localdpo", "trl"):
        environment["LD_PRELOAD"] = blas
    return environment


def run(name: str, python: str, folder: Path, steps: int, checkpoint: bool) -> dict[str, Any] | str:
    """What a run of a trainer took, or why there was none."""
    read, write = os.pipe()
    environment = environment_of(name, folder / "cache") | {"MLX_ENABLE_COMPILE": "1"}
    command = [python, __file__, "--child", name, "--folder", str(folder), "--steps", str(steps)]
    if checkpoint:
        command.append("--checkpoint")
    with (folder / f"{name}.log").open("ab") as log:
        done = subprocess.run(
            ["bash", "-c", f'exec 3>&{write}; exec "$@"', "bash", *command],
            pass_fds=[write],
            env=environment,
            stdout=log,
            stderr=log,
        )
    os.close(write)
    with os.fdopen(read) as answer:
        content = answer.read()
    if done.returncode:
        last = (folder / f"{name}.log").read_text(errors="replace").strip().splitlines()[-1:]
        return f"{name} left out: {' '.join(last)[:160]}"
    result: dict[str, Any] = json.loads(content)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=11)
    parser.add_argument("--only", default=",".join(TRAINERS))
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--checkpoint", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child, args.folder, args.steps, args.checkpoint)
        return
    pythons = dict(pair.split("=", 1) for pair in args.python)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_work(folder)
        runs = [(trainer, way) for way in args.ways.split(",") for trainer in args.only.split(",")]
        for number in range(args.rounds):
            for trainer, way in list(runs):
                python = pythons.get(trainer, sys.executable)
                result = run(trainer, python, folder, args.steps, WAYS[way])
                if isinstance(result, str):
                    print(result)
                    runs.remove((trainer, way))
                    continue
                found.setdefault((trainer, way), []).append(result)
                step = statistics.median(result["steps"])
                print(f"round {number + 1} {trainer}, {way}: {step:.2f} s a step", flush=True)
    print(f"\n{platform.system()} {platform.machine()}, {os.cpu_count()} cores; {time.strftime('%Y-%m-%d')};")
    print(f"random Qwen3 shape, {PAIRS} pairs, {BATCH} a step, LoRA rank {RANK}, float32;")
    print("times and memory of others by those of localdpo, whose lines of tokens have no padding")
    print(
        f"{'trainer':24}{'activations':>12}{'s a step':>10}{'times':>7}{'reference':>11}{'times':>7}"
        f"{'peak GB':>9}{'times':>7}{'resident':>10}"
    )
    for (trainer, way), results in found.items():
        mine, ours = figures(results), figures(found.get(("localdpo", way), []))
        ratio = [f"{a / b:.2f}" if a and b else "" for a, b in zip(mine, ours, strict=True)]
        step, reference, peak = (f"{value:.2f}" if value else "" for value in mine)
        resident = max(r["resident"] for r in results)
        label = f"{trainer} {results[0]['version']}"
        print(
            f"{label:24}{way:>12}{step:>10}{ratio[0]:>7}{reference:>11}{ratio[1]:>7}"
            f"{peak:>9}{ratio[2]:>7}{resident:10.2f}"
        )
    for way in WAYS:
        for result in found.get(("localdpo", way), []):
            rate = statistics.median(
                n / t for n, t in zip(result["operations"], result["steps"], strict=True)
            )
            square, shaped = result["rates"]
            print(
                f"localdpo, {way}: {rate / 1e9:.0f} billion operations a second in products, "
                f"{rate / square:.0%} of the rate of square ones ({square / 1e9:.0f}), "
                f"{rate / shaped:.0%} of that of a step's linear layers ({shaped / 1e9:.0f})"
            )


def figures(results: list[dict[str, Any]]) -> tuple[float, float, float]:
    """Seconds of a step and of a batch's reference pass, medians, and the peak in GB; 0 where unknown."""
    steps, passes = ([seconds for r in results for seconds in r[key]] for key in ("steps", "reference"))
    middle = [statistics.median(values) if values else 0.0 for values in (steps, passes)]
    return middle[0], middle[1], max((r["peak"] for r in results), default=0.0)


if __name__ == "__main__":
    main()
