"""Tokenizers rebuilt from metadata give the ids of the tokenizers that they were made of."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from gguf_files import random_weights, write_gguf
from hypothesis import given
from hypothesis import strategies as st
from tiny_folders import CHATML, CORPUS, make_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from localdpo.gguf.convert import convert
from localdpo.gguf.tokenizer import PRE, SAME
from localdpo.model.load import load_tokenizer

TEXTS = ["The answer is 42.", "  two  spaces\n\nlines", "Ünï¢ode ☃", "", " a", "a<|im_end|> b", "x" * 50]


def imported(folder: Path, family: str = "llama", **changed: Any) -> PreTrainedTokenizerBase:
    """The tokenizer of a file with this metadata."""
    rows = max(298, len(changed.get("tokenizer.ggml.tokens", [])))
    model, config = random_weights(family, vocab_size=rows)
    convert(write_gguf(folder / "m.gguf", model, config, changed=changed), folder / "out")
    return AutoTokenizer.from_pretrained(folder / "out")


def test_a_byte_level_tokenizer_comes_back(tmp_path: Path) -> None:
    before, after = make_tokenizer(), imported(tmp_path)
    for text in TEXTS:
        assert after(text)["input_ids"] == before(text)["input_ids"], text
        assert after.decode(after(text)["input_ids"]) == text
    assert after.get_vocab() == before.get_vocab()
    assert (after.eos_token, after.pad_token, after.bos_token) == ("<|im_end|>", "<|pad|>", None)
    assert after.chat_template == CHATML
    wrapped = load_tokenizer(str(tmp_path / "out"))
    assert wrapped.eos_token_ids == {before.eos_token_id}
    assert wrapped.encode("a<|im_end|>") == before.encode("a<|im_end|>")


def test_the_tokens_around_a_text_are_those_that_the_file_says(tmp_path: Path) -> None:
    ids: dict[str, Any] = {"tokenizer.ggml.bos_token_id": np.uint32(1)}
    for number, (name, expected) in enumerate(
        [("gpt-2", []), ("llama-bpe", [1]), ("tekken", [1]), ("qwen2", [])]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        tokenizer = imported(folder, **ids, **{"tokenizer.ggml.pre": name})
        assert tokenizer("").input_ids == expected
    folder = tmp_path / "said"
    folder.mkdir()
    tokenizer = imported(
        folder,
        **ids,
        **{"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True},
        **{"tokenizer.ggml.eot_token_id": np.uint32(0)},
    )
    assert tokenizer("").input_ids == [1, 2]
    assert load_tokenizer(str(folder / "out")).eos_token_ids == {2, 0}


def test_a_token_ends_a_turn_where_the_template_has_it_and_the_file_does_not_say_so(tmp_path: Path) -> None:
    """As in files of Phi 3 and the first Gemma, whose answers would go on behind the end of their turn."""
    tokenizer = make_tokenizer()
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for template, ends in ((CHATML, {0, end}), ("{{ messages }}", {0})):
        folder = tmp_path / str(len(ends))
        folder.mkdir()
        imported(folder, **{"tokenizer.ggml.eos_token_id": np.uint32(0), "tokenizer.chat_template": template})
        assert load_tokenizer(str(folder / "out")).eos_token_ids == ends


def test_every_way_to_split_words_is_built(tmp_path: Path) -> None:
    assert set(SAME.values()) <= PRE.keys()
    splits = {}
    for number, name in enumerate(PRE):
        folder = tmp_path / str(number)
        folder.mkdir()
        tokenizer = imported(folder, **{"tokenizer.ggml.pre": name})
        words = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("We'LL see 12345 things/\n")
        splits[name] = [word for word, _ in words]
    assert splits == {
        "gpt-2": ["We", "'", "LL", "Ġsee", "Ġ12345", "Ġthings", "/", "Ċ"],
        "smollm": ["We", "'", "LL", "Ġsee", "Ġ", "1", "2", "3", "4", "5", "Ġthings", "/", "Ċ"],
        "llama-bpe": ["We", "'LL", "Ġsee", "Ġ", "123", "45", "Ġthings", "/Ċ"],
        "smaug-bpe": ["We", "'LL", "Ġsee", "Ġ", "123", "45", "Ġthings", "/Ċ"],
        "qwen2": ["We", "'LL", "Ġsee", "Ġ", "1", "2", "3", "4", "5", "Ġthings", "/Ċ"],
        "tekken": ["We", "'LL", "Ġsee", "Ġ", "1", "2", "3", "4", "5", "Ġthings", "/Ċ"],
        "gpt-4o": ["We'LL", "Ġsee", "Ġ", "123", "45", "Ġthings", "/Ċ"],
    }


@pytest.fixture(scope="module", params=[True, False], ids=["prefix", "no-prefix"])
def sentencepiece_pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[sentencepiece.SentencePieceProcessor, PreTrainedTokenizerBase]:
    """SentencePiece's own processor, and the tokenizer of a file that was made of its model."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=model,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        add_dummy_prefix=request.param,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    own = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ids = range(own.get_piece_size())
    kinds = [2 if own.is_unknown(i) else 3 if own.is_control(i) else 6 if own.is_byte(i) else 1 for i in ids]
    folder = tmp_path_factory.mktemp("spm")
    changed = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": None,
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.tokens": [own.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [float(own.get_score(i)) for i in ids],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": np.uint32(own.bos_id()),
        "tokenizer.ggml.eos_token_id": np.uint32(own.eos_id()),
        "tokenizer.ggml.unknown_token_id": np.uint32(own.unk_id()),
        "tokenizer.ggml.padding_token_id": None,
        "tokenizer.ggml.add_space_prefix": request.param,
    }
    return own, imported(folder, **changed)


@given(text=st.one_of(st.text(), st.text("The answrtoqu ino.  7\n", max_size=40)))
def test_a_sentencepiece_tokenizer_comes_back(
    sentencepiece_pair: tuple[sentencepiece.SentencePieceProcessor, PreTrainedTokenizerBase], text: str
) -> None:
    own, ours = sentencepiece_pair
    # SentencePiece takes its own mark of a space for one; NUL ends its texts.
    text = text.replace("▁", "_").replace("\0", "")
    assert ours(text).input_ids == [own.bos_id(), *own.encode(text)]
    assert ours.decode(ours(text).input_ids, skip_special_tokens=True) == text


def test_white_space_behind_phi3s_special_tokens_is_no_token(tmp_path: Path) -> None:
    tokens = ["<unk>", "<s>", "<|end|>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a"]
    changed = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.merges": None,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, 1, 1, 1],
        "tokenizer.ggml.bos_token_id": np.uint32(1),
        "tokenizer.ggml.unknown_token_id": np.uint32(0),
        "tokenizer.ggml.padding_token_id": None,
    }
    (tmp_path / "phi3").mkdir()
    ids = imported(tmp_path / "phi3", "phi3", **changed)("<|end|>\n a").input_ids
    assert ids == [1, 2, tokens.index("▁a")]
    assert len(imported(tmp_path, **changed)("<|end|>\n a").input_ids) > 3
