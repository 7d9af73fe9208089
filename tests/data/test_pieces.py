"""Ids of pieces against the tokenizer's own of the whole text."""

from __future__ import annotations

import gc
import json
import weakref
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import CORPUS, SHAPES, chat_tokenizer, plain_tokenizer, spaced_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from localdpo.data import pieces
from localdpo.data.encode import Encoder, Limits
from localdpo.data.pieces import DIGITS, SPLITS, Pieces, can_be_cut
from localdpo.data.types import Example, Pair

# White space, marks that compose with what is before them, and what the expressions ask about.
PARTS = [" ", "  ", "\n", " \n ", "\t", "\r\n", "\u00a0", "\u2003", "\u3000", "\u180e", "\x1f", "\x85"]
PARTS += ["\u200b", "\u0301", "e\u0301", "\u1fef", "\u212b", "'s", "'LL", "don't", "/", "...", "1234"]
PARTS += ["the", "The", "answer", "ANSWER", "\u00e4", "\u4e16\u754c", "\u01c5", "\U0001f600", "a_b", "(x)"]
PARTS += ["\u0663", "<end>", '"', "-"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=30).map("".join) | st.text(max_size=40)


def tokenizer(split: str, *, digits: bool = False, composed: bool = True) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    steps: list[Any] = [pre_tokenizers.Split(Regex(DIGITS), "isolated")] if digits else []
    steps += [
        pre_tokenizers.Split(Regex(split), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if composed:
        backend.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<end>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([*CORPUS, " ".join(PARTS), "".join(PARTS) * 3], trainer)
    return backend


KNOWN = [tokenizer(split, digits=i == 0, composed=i != 1) for i, split in enumerate(SPLITS)]


@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_the_ids_of_pieces_are_those_of_the_whole(texts: list[str]) -> None:
    for backend in KNOWN:
        assert can_be_cut(backend)
        wholes = [encoding.ids for encoding in backend.encode_batch(texts, add_special_tokens=False)]
        assert Pieces(backend).encode(texts) == wholes


def test_what_is_remembered_goes_with_its_tokenizer() -> None:
    known = Pieces(tokenizer(SPLITS[0]))
    assert known.encode(["The answer, the answer"])
    gone = weakref.ref(known)
    gc.disable()
    try:
        del known
        assert gone() is None
    finally:
        gc.enable()


def test_what_is_remembered_stays_within_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_ROOM", 2_000)
    known = Pieces(KNOWN[0])
    sizes = []
    for start in range(0, 300, 10):
        texts = [f"the answer is {number} or {number + 1}" for number in range(start, start + 10)]
        wholes = [encoding.ids for encoding in KNOWN[0].encode_batch(texts, add_special_tokens=False)]
        assert known.encode(texts) == wholes
        sizes.append(len(known._later))
    assert max(sizes) < 40


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS), min_size=1, max_size=3), st.sampled_from(sorted(SHAPES)))
@settings(max_examples=30)
def test_rows_have_the_ids_that_they_have_without_pieces(
    rows: list[tuple[str, str, str]], shape: str
) -> None:
    examples: list[tuple[int, Example]] = [
        (
            i,
            Pair(
                [{"role": "system", "content": "be the answer"}, {"role": "user", "content": prompt}], *sides
            ),
        )
        for i, (prompt, *sides) in enumerate(rows)
    ]
    examples += [(len(rows), Pair(*rows[0]))]
    limits = Limits(30, 20, "keep_end")
    with_pieces, without = (Encoder(chat_tokenizer(shape), "auto", limits) for _ in "ab")
    assert with_pieces.tokens.pieces is not None
    without.tokens.pieces = None
    first, second = with_pieces.encode(examples), without.encode(examples)
    assert first.dropped == second.dropped
    for row, wanted in zip(first.rows, second.rows, strict=True):
        assert row.prompt.tolist() == wanted.prompt.tolist()
        assert [ids.tolist() for ids in row.responses] == [ids.tolist() for ids in wanted.responses]


def test_a_tokenizer_that_might_join_pieces_takes_texts_whole() -> None:
    assert can_be_cut(plain_tokenizer(None).backend_tokenizer)
    assert not can_be_cut(spaced_tokenizer().backend_tokenizer)
    assert not can_be_cut(tokenizer(r"\w+| +|[^\w ]+"))
    for change in (
        {"normalizer": {"type": "Lowercase"}},
        {"pre_tokenizer": None},
        {
            "pre_tokenizer": {
                "type": "ByteLevel",
                "add_prefix_space": True,
                "trim_offsets": True,
                "use_regex": True,
            }
        },
    ):
        form = json.loads(KNOWN[0].to_str()) | change
        assert not can_be_cut(Tokenizer.from_str(json.dumps(form)))
    for token in (AddedToken("<a b>"), AddedToken("<x>", lstrip=True), AddedToken("<y>", single_word=True)):
        backend = Tokenizer.from_str(KNOWN[0].to_str())
        backend.add_tokens([token])
        assert not can_be_cut(backend)
