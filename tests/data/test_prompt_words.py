"""An encoded prompt as people read it: the template's roles as words, its marks gone."""

from __future__ import annotations

import pytest
from tiny_tokenizers import SHAPES, chat_tokenizer, plain_tokenizer

from localdpo.core.text import turns_of
from localdpo.data.encode import encode_prompt
from localdpo.data.inspect import prompt_words

TALK = [
    {"role": "user", "content": "the answer?"},
    {"role": "assistant", "content": "yes\n\nfox"},
    {"role": "user", "content": "user\nis it?"},
]


def words(shape: str, messages: list[dict[str, str]]) -> str:
    tokenizer = chat_tokenizer(shape)
    return prompt_words(encode_prompt(tokenizer, messages, "auto").tolist(), tokenizer)


@pytest.mark.parametrize("shape", [name for name in SHAPES if name not in ("mistral", "stripped")])
def test_the_roles_of_a_template_are_words(shape: str):
    said = words(shape, TALK)
    assert turns_of(said) == [
        ("user", "the answer?"),
        ("assistant", "yes\n\nfox"),
        ("user", "user\nis it?"),
    ]
    assert words(shape, TALK[:1]) == "the answer?"


def test_without_named_roles_it_is_the_text():
    assert words("stripped", TALK[:1]) == "User: the answer?\nAssistant:"
    tokenizer = plain_tokenizer(bos=True)
    ids = tokenizer("the fox: user")["input_ids"]
    assert prompt_words(ids, tokenizer) == "the fox: user"
    assert prompt_words([], tokenizer) == ""


def test_a_text_that_is_no_conversation_is_one_turn():
    for text in ("", "user", "hello\n\nuser: x", "User: x"):
        assert turns_of(text) == [("", text)]
    assert turns_of("system: a\n\nb\n\nuser: c: d") == [("system", "a\n\nb"), ("user", "c: d")]
