"""Tiny byte-level BPE tokenizers with chat templates shaped like those of well-known models."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "The quick brown fox jumps over the lazy dog. The answer is yes, the answer is no.",
    "User: what is the answer?\nAssistant: the answer is forty two.\n",
    "the the the user assistant model system think answer answers question questions\n\n",
] * 20

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
# Qwen3: the last answer always gets a thinking block; the generation prompt only with thinking switched off.
QWEN3 = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}"
    "{% set thought = m['content'].split('</think>')[0].split('<think>')[-1].strip('\n')"
    " if '</think>' in m['content'] else '' %}"
    "{{ '<think>\n' + thought + '\n</think>\n\n' + m['content'].split('</think>')[-1].lstrip('\n') }}"
    "{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
# The other way round, as reasoning models distilled into other families have it.
OPEN_THOUGHT = CHATML.replace("'<|im_start|>assistant\n' }}", "'<|im_start|>assistant\n<think>\n' }}")
# No control token at all, everything stripped, and a generation prompt that ends in a space.
STRIPPED = (
    "{% for m in messages %}"
    "{{ ('User: ' if m['role'] == 'user' else 'Assistant: ') + m['content'].strip() + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)
# Opens the next answer whether it is asked to or not.
ALWAYS_OPEN = CHATML.partition("{% if add_generation_prompt %}")[0] + "{{ '<|im_start|>assistant\n' }}"

# name -> (template, BOS, EOS, text that ends a turn, other control tokens)
SHAPES: dict[str, tuple[str, str | None, str, str, tuple[str, ...]]] = {
    "chatml": (CHATML, None, "<|im_end|>", "<|im_end|>", ("<|im_start|>",)),
    "llama3": (LLAMA3, "<|begin|>", "<|eot_id|>", "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>")),
    "gemma": (GEMMA, "<bos>", "<eos>", "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>")),
    "mistral": (MISTRAL, "<s>", "</s>", "</s>", ()),
    "qwen3": (QWEN3, None, "<|im_end|>", "<|im_end|>", ("<|im_start|>", "<think>", "</think>")),
    "open-thought": (OPEN_THOUGHT, None, "<|im_end|>", "<|im_end|>", ("<|im_start|>", "<think>")),
    "stripped": (STRIPPED, None, "</s>", "</s>", ()),
    "always-open": (ALWAYS_OPEN, None, "<|im_end|>", "<|im_end|>", ("<|im_start|>",)),
}


def _bpe(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@cache
def chat_tokenizer(shape: str, source: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer with the chat template of this shape, or with another one."""
    template, bos, eos, _, control = SHAPES[shape]
    special = list(dict.fromkeys([token for token in (bos, eos, *control) if token]))
    return PreTrainedTokenizerFast(
        tokenizer_object=_bpe(special),
        bos_token=bos,
        eos_token=eos,
        chat_template=source or template,
        clean_up_tokenization_spaces=False,
    )


def plain_tokenizer(bos: bool = False, eos: bool = True) -> PreTrainedTokenizerFast:
    """A tokenizer without a chat template; with `bos`, it puts <s> before every text by itself."""
    backend = _bpe(["<s>", "</s>"])
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    names = {"bos_token": "<s>"} if bos else {}
    names |= {"eos_token": "</s>"} if eos else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **names)


@cache
def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """A SentencePiece-like tokenizer, which puts a space before every text that stands alone."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    special = ["<unk>", "<s>", "</s>"]
    backend.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=200, special_tokens=special, show_progress=False)
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>", clean_up_tokenization_spaces=False
    )
