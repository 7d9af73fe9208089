"""A byte-level BPE tokenizer with a chat template, trained on the demo's own text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

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


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and the chat template into `folder`."""
    tokenizer.save_pretrained(str(folder))
