"""The demo's base model from scratch: tokenizer, pre-training, quantisation into mlx-lm's folder layout."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx_lm.models import qwen3
from mlx_lm.utils import quantize_model, save_model
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from localdpo.demo import dataset
from localdpo.incidents import REGIONS, SERVICES
from localdpo.out import say as tell

GLANCE_WIDTH = 40  # tokens; no glance is longer
WIDTH = 112  # tokens of a document; the longest ones lose their last turn's end
PROMPT_WEIGHT = 0.3  # what a report holds cannot be predicted; the answers teach more
COPIES = 0.95  # share of numbers right in glances at which whole reports begin
BOS, PAD, END = "<|begin|>", "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
SPECIAL = (BOS, PAD, END, *ROLES)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role: ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
# Words and numbers keep their space, and digits go in pairs: a number is one or two tokens, the same ones
# wherever it stands after a space, and the token before it is the word before it. So copying is easy.
_SPLIT = r" ?[A-Za-z]+| ?[0-9]{1,2}|\n| ?[^\sA-Za-z0-9]+|\s+"
Say = Callable[[str], None]
Document = Callable[[random.Random], dataset.Messages]


def train_tokenizer(texts: Iterable[str], vocabulary: int = 768) -> PreTrainedTokenizerFast:
    """Train on `texts`; `vocabulary` is an upper bound and counts the 256 bytes and the special tokens.

    Every 2-digit number after a space is one token, and so is "00": the training text gets them added.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    numbers = [f" {number}" for number in range(100)] * 2000 + ["00"] * 2000
    tokenizer.train_from_iterator([*texts, *numbers], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class PretrainOptions:
    """How the base model is trained: first on glances until it copies, then `steps` steps on whole reports.

    A model that copies from single sentences reads whole reports within 200 steps; without them it took 1,300
    steps with one seed and more than 2,000 with others. batch: documents in a step. learning_rate: the peak,
    after `warmup` steps; it falls to 0 over the last 70% of the reports.
    """

    steps: int = 1100
    most_glances: int = 4000
    batch: int = 16
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.01
    seed: int = 0
    report_every: int = 50


def model_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The config.json of the demo model: a Qwen3 of about 0.9 million parameters."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 128,
        "num_hidden_layers": 4,
        "intermediate_size": 384,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "torch_dtype": "float32",
    }


def encode_document(
    messages: dataset.Messages, tokenizer: PreTrainedTokenizerFast
) -> tuple[list[int], list[float]]:
    """Token ids of one chat and the loss weight of each: 1 in the assistant's turns (their end included)."""
    ids: list[int] = [tokenizer.bos_token_id]
    weights: list[float] = [0.0]
    for message in messages:
        content = tokenizer.encode(message["content"], add_special_tokens=False)
        role = tokenizer.convert_tokens_to_ids(f"<|{message['role']}|>")
        mine = 1.0 if message["role"] == "assistant" else PROMPT_WEIGHT
        ids += [role, *content, tokenizer.eos_token_id]
        weights += [PROMPT_WEIGHT] + [mine] * (len(content) + 1)
    return ids, weights


def make_batch(
    rng: random.Random,
    tokenizer: PreTrainedTokenizerFast,
    size: int,
    width: int = WIDTH,
    document: Document = dataset.document,
) -> tuple[np.ndarray, np.ndarray]:
    """ids int32[size, width + 1], right-padded, and weights float32 of the same shape (0 on padding)."""
    ids = np.full((size, width + 1), tokenizer.pad_token_id, np.int32)
    weights = np.zeros((size, width + 1), np.float32)
    for row in range(size):
        tokens, token_weights = encode_document(document(rng), tokenizer)
        count = min(len(tokens), width + 1)
        ids[row, :count] = tokens[:count]
        weights[row, :count] = token_weights[:count]
    return ids, weights


def next_token_loss(model: nn.Module, ids: mx.array, weights: mx.array) -> mx.array:
    """Weighted mean cross-entropy in nats."""
    losses = nn.losses.cross_entropy(model(ids[:, :-1]), ids[:, 1:])
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def copy_accuracy(
    model: nn.Module, tokenizer: PreTrainedTokenizerFast, seed: int, document: Document = dataset.interview
) -> dict[str, float]:
    """Shares of the numbers, services and regions in the answers of 64 documents that the model gets right.

    Measured on the first token of each, and every digit of the numbers.
    """
    ids, weights = make_batch(random.Random(seed), tokenizer, 64, document=document)
    target, answered = ids[:, 1:], weights[:, 1:] == 1.0
    right = np.array(mx.argmax(model(mx.array(ids[:, :-1])), axis=-1)) == target
    kinds = {
        "numbers": [i for token, i in tokenizer.get_vocab().items() if token.lstrip("Ġ").isdigit()],
        "services": [tokenizer.encode(f" {name}", add_special_tokens=False)[0] for name in SERVICES],
        "regions": [tokenizer.encode(f" {name}", add_special_tokens=False)[0] for name in REGIONS],
    }
    return {kind: float(right[answered & np.isin(target, tokens)].mean()) for kind, tokens in kinds.items()}


class Pretrainer:
    """A model with random weights, and AdamW to train it."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, options: PretrainOptions, say: Say) -> None:
        self.tokenizer, self.options, self.say = tokenizer, options, say
        mx.random.seed(options.seed)
        self.rng = random.Random(options.seed)
        self.model = qwen3.Model(qwen3.ModelArgs.from_dict(model_config(tokenizer)))
        mx.eval(self.model.parameters())
        self.optimizer = optim.AdamW(
            options.learning_rate, betas=[0.9, 0.95], weight_decay=options.weight_decay, bias_correction=True
        )
        self.state = [self.model.state, self.optimizer.state]
        self.update = mx.compile(self._update, inputs=self.state, outputs=self.state)
        self.losses: list[float] = []

    def _update(self, ids: mx.array, weights: mx.array) -> mx.array:
        loss, gradients = nn.value_and_grad(self.model, next_token_loss)(self.model, ids, weights)
        gradients, _ = optim.clip_grad_norm(gradients, 1.0)
        self.optimizer.update(self.model, gradients)
        return loss

    def take_step(self, rate: float, width: int, document: Document) -> None:
        """One step at `rate` times the peak learning rate, on new documents."""
        self.optimizer.learning_rate = self.options.learning_rate * rate
        ids, weights = make_batch(self.rng, self.tokenizer, self.options.batch, width, document)
        loss = self.update(mx.array(ids), mx.array(weights))
        mx.eval(self.state, loss)
        self.losses.append(float(loss))
        if not math.isfinite(self.losses[-1]):
            raise ValueError("pre-training diverged: try a lower learning rate")

    def progress(self, stage: str, document: Document) -> float:
        """Say how far it is; the share of numbers copied in such documents."""
        copied = copy_accuracy(self.model, self.tokenizer, self.options.seed + 1, document)
        shares = ", ".join(f"{kind} {share:.2f}" for kind, share in copied.items())
        self.say(f"{stage}: loss {np.mean(self.losses):.3f}; copied: {shares}")
        self.losses.clear()
        return copied["numbers"]

    def glance(self) -> None:
        """Train on single sentences until numbers are copied. Raises ValueError when that never happens."""
        for step in range(1, self.options.most_glances + 1):
            self.take_step(min(1.0, step / self.options.warmup), GLANCE_WIDTH, dataset.glance)
            if step % self.options.report_every == 0:
                copied = self.progress(f"pre-training, sentences, step {step}", dataset.glance)
                if copied >= COPIES:
                    return
        raise ValueError(f"no copying after {self.options.most_glances} steps: try another seed")

    def read(self) -> None:
        """Train on the whole mixture."""
        steps = self.options.steps
        for step in range(1, steps + 1):
            rate = min(1.0, (steps - step) / (0.7 * steps))
            self.take_step(rate, WIDTH, dataset.document)
            if step % self.options.report_every == 0 or step == steps:
                self.progress(f"pre-training, reports, step {step}/{steps}", dataset.interview)


def train_base(tokenizer: PreTrainedTokenizerFast, options: PretrainOptions, say: Say = tell) -> nn.Module:
    """Train the base model from random weights; `say` gets a line every `report_every` steps."""
    trainer = Pretrainer(tokenizer, options, say)
    trainer.glance()
    trainer.read()
    return trainer.model


def save_quantised(model: nn.Module, tokenizer: PreTrainedTokenizerFast, folder: Path, bits: int) -> None:
    """Quantise `model` in place (groups of 64) and write it with its tokenizer as mlx-lm reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    model, config = quantize_model(model, model_config(tokenizer), group_size=64, bits=bits)
    save_model(folder, model, donate_model=False)
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    tokenizer.save_pretrained(str(folder))
