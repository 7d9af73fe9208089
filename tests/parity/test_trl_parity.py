"""The losses of training are those of TRL: same model, same LoRA weights, same pairs, same optimizer.

Both sides read the same folder and the same text pairs: TRL's DPOTrainer with PEFT through transformers, this
package through its recipe. The adapter's lora_b starts away from zero, so the reference is base + adapter on
both sides and every adapter weight has a gradient from the first step on.
"""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from localdpo.model.backend import Backend
from localdpo.recipe.load import load_recipe
from localdpo.records.events import EventWriter, read_events
from localdpo.records.rundir import RunDir
from localdpo.train.assemble import assemble
from localdpo.train.control import StopRequest
from localdpo.train.loop import Loop

MISSING = [name for name in ("torch", "trl", "peft") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.skipif(
        bool(MISSING),
        reason=f"{', '.join(MISSING)} not installed: pip install -e '.[parity]' for the optional extra",
    ),
    # What torch, TRL and PEFT warn about on import and while training is theirs.
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(600),
]

STEPS, PAIRS = 30, 8
RANK, SCALE = 4, 2.0
LEARNING_RATE = 1e-4
# Agreement of the losses, relative. The two sides order float32 sums differently, and Adam divides by the
# gradients' own size, so differences grow with the steps.
TOLERANCE = 1e-4
# Beta: large enough that the loss moves by far more than the tolerance, small enough that no hinge is done.
LOSSES: dict[str, dict[str, float]] = {
    "sigmoid": {"beta": 0.1},
    "ipo": {"beta": 0.1},
    "hinge": {"beta": 0.1},
    "robust": {"beta": 0.1, "label_smoothing": 0.1},
    "apo_zero": {"beta": 0.1},
    "sigmoid_norm": {"beta": 1.0},
}
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 260,
    "max_position_embeddings": 256,
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that no token spans the boundary of prompt and response."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<end>", "<pad>", *letters])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<pad>")


def text_pairs() -> list[dict[str, str]]:
    """Random texts of unequal lengths."""
    rng = random.Random(0)

    def text(low: int, high: int) -> str:
        return "".join(rng.choice("abcdefghijklmnop ") for _ in range(rng.randint(low, high)))

    return [
        {"prompt": text(5, 25) + ":", "chosen": text(4, 30), "rejected": text(4, 30)} for _ in range(PAIRS)
    ]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tiny random models, an adapter for each in both formats, and the pairs."""
    folder = tmp_path_factory.mktemp("parity")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in text_pairs()))
    for family in ("llama", "qwen3"):
        write_family(folder, family)
    return folder


def write_family(root: Path, family: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)  # for products this small, threads only wait for each other
    config = AutoConfig.for_model(family, **SHAPE, tie_word_embeddings=family == "qwen3", eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        # The default of 0.02 makes nearly uniform predictions and gradients near rounding.
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0.0, 0.15)
    model.save_pretrained(root / family)
    byte_tokenizer().save_pretrained(root / family)
    shape = LoraConfig(
        r=RANK, lora_alpha=RANK * SCALE, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    peft = get_peft_model(model, shape)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.normal_(0.0, 0.1 if "lora_A" in name else 0.05)
    peft.save_pretrained(root / f"{family}-peft")
    write_our_adapter(root / f"{family}-adapter", peft)


def write_our_adapter(folder: Path, peft: Any) -> None:
    """The PEFT adapter as mlx-lm has it: lora_a [in, r] is lora_A [r, in] transposed, scale is alpha / r."""
    weights = {}
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            path, _, kind = (
                name.removeprefix("base_model.model.").removesuffix(".default.weight").rpartition(".")
            )
            weights[f"{path}.{kind.lower()}"] = mx.array(np.ascontiguousarray(parameter.detach().numpy().T))
    folder.mkdir()
    mx.save_safetensors(str(folder / "adapters.safetensors"), weights)
    parameters = {"rank": RANK, "scale": SCALE, "dropout": 0.0}
    config = {"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def trl_losses(root: Path, family: str, loss: str, output: Path, *, precompute: bool) -> list[float]:
    """The loss of every step of TRL's trainer, unrounded (its log has few digits)."""
    import torch
    from datasets import Dataset
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    seen: list[float] = []

    class Recorded(DPOTrainer):  # type: ignore[misc]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            result = super().compute_loss(*args, **kwargs)
            seen.append(float(result.detach()))
            return result

    model = AutoModelForCausalLM.from_pretrained(root / family, dtype=torch.float32)
    policy = PeftModel.from_pretrained(model, root / f"{family}-peft", is_trainable=True)
    config = DPOConfig(
        output_dir=str(output),
        loss_type=[loss],
        **LOSSES[loss],
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=STEPS,
        per_device_train_batch_size=PAIRS,
        precompute_ref_log_probs=precompute,
        max_length=256,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    data = Dataset.from_list(text_pairs())
    Recorded(policy, args=config, train_dataset=data, processing_class=byte_tokenizer()).train()
    return seen


def our_losses(root: Path, family: str, loss: str, output: Path) -> list[float]:
    """The loss of every step of a run of this package, from its event log."""
    options = ", ".join(f"{key}: {value}" for key, value in LOSSES[loss].items())
    run = RunDir.create(
        output,
        loss,
        f"model: {root}/{family}\nadapter: {root}/{family}-adapter\n"
        f"data: {{train: {root}/pairs.jsonl, valid: {root}/pairs.jsonl, template: raw}}\n"
        f"loss: {{type: {loss}, {options}}}\n"
        f"train: {{epochs: {STEPS}, batch_size: {PAIRS}, learning_rate: {LEARNING_RATE}, schedule: constant, "
        "warmup: 0, optimizer: adamw, weight_decay: 0.0, max_grad_norm: 1.0, max_length: 256}\n"
        "eval: {every: 1000, pairs: 1, samples: 0, kl_pairs: 0}\nsave: {every: 1000}\n",
    )
    session = assemble(load_recipe(run.recipe), Backend("cpu", None, False, ()), lambda note: None)
    assert session.forward.shared
    with EventWriter(run.events) as log:
        Loop(session, run, log, StopRequest()).run()
    return [event.data["metrics"]["loss"] for event in read_events(run.events) if event.type == "step"]


@pytest.mark.parametrize(
    ("family", "loss", "precompute"),
    [*(("llama", loss, False) for loss in LOSSES), ("qwen3", "sigmoid", False), ("llama", "sigmoid", True)],
)
def test_thirty_steps_have_the_losses_of_trl(
    family: str,
    loss: str,
    precompute: bool,
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Any,
) -> None:
    monkeypatch.setenv("LOCALDPO_CACHE", str(tmp_path / "cache"))
    ours = np.array(our_losses(root, family, loss, tmp_path / "ours"))
    theirs = np.array(trl_losses(root, family, loss, tmp_path / "theirs", precompute=precompute))
    assert ours.shape == theirs.shape == (STEPS,)
    difference = float(np.max(np.abs(ours - theirs) / np.abs(theirs)))
    record_property("largest_relative_difference", difference)
    print(f"{family} {loss}: loss {theirs[0]:.4f} to {theirs[-1]:.4f}, largest difference {difference:.2e}")
    # The run must have moved, or agreement would say nothing about gradients and updates.
    assert abs(theirs[-1] - theirs[0]) > 0.05 * abs(theirs[0])
    assert difference < TOLERANCE
