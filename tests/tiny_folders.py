"""Tiny model folders in mlx-lm's layout, adapters, pairs and recipes, made on the spot for whole runs."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import yaml
from mlx.utils import tree_flatten
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from localdpo.model import lora
from localdpo.model.load import load_base

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = ["The answer to question number 7 is good. The answer is bad. What is the answer?"] * 20
CONFIG: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a ChatML template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|pad|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        chat_template=CHATML,
        clean_up_tokenization_spaces=False,
    )


def make_model_folder(folder: Path, *, family: str = "qwen3", quantised: bool = False, seed: int = 0) -> Path:
    """A random model of the family with its tokenizer, as mlx-lm saves one."""
    tokenizer = make_tokenizer()
    ends = tokenizer.eos_token_id
    config = {**CONFIG, "model_type": family, "vocab_size": len(tokenizer), "eos_token_id": ends}
    mx.random.seed(seed)
    module = importlib.import_module(f"mlx_lm.models.{family}")
    model = module.Model(module.ModelArgs.from_dict(config))
    # At its default scale a random head is nearly uniform; this one has opinions.
    model.update({"lm_head": {"weight": mx.random.normal((len(tokenizer), 64)) * 0.3}})
    if quantised:
        nn.quantize(model, group_size=32, bits=4)
        config["quantization"] = {"group_size": 32, "bits": 4}
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(folder)
    mx.save_safetensors(
        str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())), metadata={"format": "mlx"}
    )
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def make_adapter(
    folder: Path, model: Path, *, seed: int = 5, kind: str = "lora", **shape: Any
) -> lora.LoraConfig:
    """A random adapter of the model, away from zero, as an SFT run would leave one."""
    config = lora.LoraConfig(kind, shape.get("layers", -1), shape.get("rank", 4), 8.0, keys=shape.get("keys"))
    base = load_base(str(model))
    lora.attach(base.model, config, seed=seed)
    weights = dict(tree_flatten(base.model.trainable_parameters()))
    rng = np.random.default_rng(seed)
    for name, value in weights.items():
        if name.endswith("lora_b"):
            weights[name] = mx.array(rng.normal(size=value.shape).astype(np.float32) * 0.05)
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / lora.WEIGHTS_FILE), weights)
    (folder / lora.CONFIG_FILE).write_text(json.dumps(config.to_json(str(model))))
    return config


def ending_model(folder: Path, model: Path) -> Path:
    """The model with many tokens that end an answer: a random one hardly ever draws its only one."""
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text())
    config["eos_token_id"] = [config["eos_token_id"], *range(100, 140)]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def pair(number: int, *, flipped: bool = False) -> dict[str, str]:
    """A pair with one learnable rule: the chosen response says good, the rejected one bad."""
    good, bad = f"The answer is {'so ' * (number % 3)}good.", f"It is {'very ' * (number % 4)}bad."
    chosen, rejected = (bad, good) if flipped else (good, bad)
    return {"prompt": f"What is question number {number}?", "chosen": chosen, "rejected": rejected}


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def write_pairs(file: Path, count: int, *, start: int = 0, flipped: bool = False) -> Path:
    """`count` pairs as JSONL."""
    return write_rows(file, [pair(start + n, flipped=flipped) for n in range(count)])


def recipe_text(model: Path, pairs: Path, held_out: Path | None = None, **sections: Any) -> str:
    """A small recipe; `sections` replace or add single options: `train={"batch_size": 4}`."""
    content: dict[str, Any] = {
        "model": str(model),
        "data": {"train": str(pairs), **({"valid": str(held_out)} if held_out else {})},
        "train": {"batch_size": 4, "learning_rate": 1e-3, "warmup": 0, "schedule": "constant"},
        "lora": {},
        # With the defaults a tiny run does little else than answer prompts for the sampled KL and write the
        # worst pairs.
        "eval": {
            **{"samples": 0, "every": 100, "kl_every": 100, "kl_samples": 0, "max_tokens": 8},
            "worst_pairs": 0,
        },
        "save": {"every": 100},
    }
    for name, values in sections.items():
        merged = isinstance(values, dict) and isinstance(content.get(name), dict)
        content[name] = {**content[name], **values} if merged else values
    if "adapter" not in sections:
        content["lora"] = {"rank": 4, "scale": 8.0, **content["lora"]}
    return yaml.safe_dump(content, sort_keys=False)
