from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.exceptions import TemplateError
from mlx_lm.tokenizer_utils import TokenizerWrapper

from localdpo import incidents
from localdpo.core.names import resolve
from localdpo.demo import dataset, pretrain
from localdpo.demo.pretrain import SPECIAL, train_tokenizer
from localdpo.model.load import load_tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def tokenizer() -> TokenizerWrapper:
    return load_tokenizer("demo:model")


@given(st.text())
def test_any_text_survives_a_round_trip(text: str) -> None:
    tokenizer = _bundled()
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def _bundled() -> TokenizerWrapper:
    if not _CACHE:
        _CACHE.append(load_tokenizer("demo:model"))
    return _CACHE[0]


_CACHE: list[TokenizerWrapper] = []


def test_a_number_of_two_digits_after_a_space_is_one_token(tokenizer: TokenizerWrapper) -> None:
    for number in range(100):
        assert len(tokenizer.encode(f" {number}", add_special_tokens=False)) == 1
    assert len(tokenizer.encode(" 4700", add_special_tokens=False)) == 2


def test_the_template_renders_every_role_and_a_generation_prompt(tokenizer: TokenizerWrapper) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "Oslo"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == "<|begin|><|system|>Be brief.<|end|><|user|>Where?<|end|><|assistant|>Oslo<|end|>"
    prompt = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert text == f"{prompt}Oslo<|end|>"


def test_an_unknown_role_is_refused(tokenizer: TokenizerWrapper) -> None:
    with pytest.raises(TemplateError, match="unknown role: tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_special_tokens_are_single_and_named(tokenizer: TokenizerWrapper) -> None:
    assert [len(tokenizer.encode(token, add_special_tokens=False)) for token in SPECIAL] == [1] * len(SPECIAL)
    assert (tokenizer.bos_token, tokenizer.pad_token, tokenizer.eos_token) == (
        "<|begin|>",
        "<|pad|>",
        "<|end|>",
    )
    assert tokenizer.eos_token_ids == {tokenizer.eos_token_id}


def test_prompts_and_answers_are_short(tokenizer: TokenizerWrapper) -> None:
    rng = random.Random(0)
    for _ in range(200):
        facts = incidents.sample_facts(rng)
        prompt = tokenizer.apply_chat_template(
            incidents.triage_prompt(incidents.report(facts, rng)),
            add_generation_prompt=True,
            return_dict=False,
        )
        assert len(prompt) <= 70
        assert len(tokenizer.encode(incidents.gold_answer(facts), add_special_tokens=False)) <= 50


@pytest.mark.long
def test_training_is_deterministic_and_matches_the_chat_template() -> None:
    rng = random.Random(0)
    documents = [dataset.document(rng) for _ in range(200)]
    texts = [message["content"] for messages in documents for message in messages]
    first, second = train_tokenizer(texts, 400), train_tokenizer(texts, 400)
    assert first.get_vocab() == second.get_vocab()
    for messages in documents[:20]:
        ids, weights = pretrain.encode_document(messages, first)
        assert ids == first.apply_chat_template(messages, return_dict=False)
        assert len(weights) == len(ids)


def test_the_model_folder_is_where_the_name_says() -> None:
    assert (resolve("demo:model") / "tokenizer.json").is_file()
