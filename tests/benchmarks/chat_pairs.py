"""Pairs much like UltraFeedback's, and a tokenizer for them with a chat template: seeded."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_COMMON = re.findall(
    r"\w+",
    """
the of and to a in is that for it as with on are be this by an or from you can at which your not have but will
was more if their has use one they we used may when also some other how all these such there what its like
into about so time each make people first way many work only then than most help need through between
""",
)
_SYLLABLES = re.findall(
    r"\w+", "ta ren mo li sa cor ve ni per dra lu ex men tion al im ber ka wo sh ed ing er con"
)
_ENDINGS = (". ", ". ", ". ", ", ", ", ", "? ", ":\n\n- ", ".\n\n", '" ', " (", ") ", "'s ", "; ", "\n1. ")
_STREAM_WORDS = 400_000
TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def stream(seed: int = 0, words: int = _STREAM_WORDS) -> str:
    """Text of 30,000 different words, as frequent as words are (Zipf's law), with punctuation and numbers."""
    rng = random.Random(seed)
    rare = {"".join(rng.choices(_SYLLABLES, k=rng.randint(1, 4))) for _ in range(40_000)}
    known = [*_COMMON, *(word.capitalize() if rng.random() < 0.1 else word for word in sorted(rare))]
    order = [*known[: len(_COMMON)], *rng.sample(known[len(_COMMON) :], len(known) - len(_COMMON))]
    weights = [1 / (rank + 2.7) for rank in range(len(order))]
    text = []
    for word in rng.choices(order, weights, k=words):
        text.append(word if rng.random() > 0.02 else str(rng.randint(0, 2100)))
        text.append(" " if rng.random() > 0.12 else rng.choice(_ENDINGS))
    return "".join(text)


def pairs(rows: int, seed: int = 0, text: str = "") -> Iterator[dict[str, Any]]:
    """Rows like UltraFeedback's in columns and size: prompts of 400 characters, answers of 850, long tails.

    `text`: what they are cut from, 20,000 characters at least; that of `stream` if none is given.
    """
    rng = random.Random(seed)
    text = text or stream(seed)

    def words(size: float) -> str:
        start = rng.randrange(len(text) - 20_000)
        return text[start : start + max(12, min(12_000, int(size)))].strip()

    for _ in range(rows):
        prompt = words(math.exp(rng.gauss(6.0, 1.0)))
        mean = rng.gauss(6.75, 0.75)
        asked = {"content": prompt, "role": "user"}
        chosen, rejected = (
            [asked, {"content": words(math.exp(mean + rng.gauss(0, 0.4))), "role": "assistant"}] for _ in "ab"
        )
        yield {
            "prompt": prompt,
            "prompt_id": hashlib.sha256(prompt.encode()).hexdigest(),
            "chosen": chosen,
            "rejected": rejected,
            "messages": chosen,
            "score_chosen": 8.0,
            "score_rejected": rng.choice((3.0, 5.0, 6.5)),
        }


def write_pairs(path: Path, rows: int, seed: int = 0, text: str = "") -> None:
    """`pairs` as JSON lines."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in pairs(rows, seed, text))


def make_tokenizer(folder: Path, vocabulary: int) -> None:
    """A byte-level BPE tokenizer with ChatML's template, learnt from `stream`, in `folder`.

    The text has some 30,000 tokens in it; a larger vocabulary is filled up with tokens that it never has.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=min(vocabulary, 32_000),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([stream()], trainer)
    learnt = json.loads(tokenizer.to_str())
    known, merges = learnt["model"]["vocab"], learnt["model"]["merges"]
    fill(known, merges, vocabulary)
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(learnt)),
        chat_template=TEMPLATE,
        bos_token=SPECIAL[1],
        eos_token=SPECIAL[2],
        pad_token=SPECIAL[2],
    ).save_pretrained(folder)


def fill(known: dict[str, int], merges: list[list[str]], vocabulary: int) -> None:
    """Merge more tokens until there are so many: pairs of those that are there."""
    tokens = [token for token in known if token not in SPECIAL]
    for left in tokens:
        for right in tokens[:500]:
            if len(known) >= vocabulary:
                return
            if left + right not in known:
                known[left + right] = len(known)
                merges.append([left, right])
