"""Ids of texts by way of their pieces: a word is tokenised once and remembered.

Byte-level BPE takes a text apart with regular expressions before it merges anything, and that is most of its
time. None of those in SPLITS matches a space together with what comes before it, nor looks back, so before a
space that follows no white space a text may be cut, and the ids of the pieces are those of the whole. Nearly
all pieces are words that were there before.
"""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Iterator, Mapping
from itertools import chain, pairwise
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer, models

_BEFORE: Final = r"[^\r\n\p{L}\p{N}]?"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDINGS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST: Final = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SLASHES: Final = _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)
DIGITS: Final = r"\p{N}"
GPT2: Final = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3: Final = rf"{_ENDINGS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
QWEN2: Final = rf"{_ENDINGS}|{_BEFORE}\p{{L}}+|\p{{N}}|{_REST}"
TEKKEN: Final = rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*|\p{{N}}|{_SLASHES}"
GPT4O: Final = (
    rf"{_BEFORE}{_UPPER}*{_LOWER}+{_ENDINGS}?|{_BEFORE}{_UPPER}+{_LOWER}*{_ENDINGS}?"
    rf"|\p{{N}}{{1,3}}|{_SLASHES}"
)
SPLITS: Final = (GPT2, LLAMA3, QWEN2, TEKKEN, GPT4O)
"""The regular expressions by which well-known models split a text into words."""

# A space after what is white space to nobody: not to Python, to the tokenizer, nor once Unicode is composed.
_CUT: Final = re.compile(r" (?<=[!-~\u00a1-\u167f\u1681-\u180d\u1810-\u1fff\u2070-\u2fff\u3001-\ud7ff] )")
# Bytes that remembered pieces may take, and those of a piece besides its characters and ids.
_ROOM, _PIECE = 60_000_000, 200


class Pieces:
    """What is remembered of one tokenizer's pieces."""

    def __init__(self, backend: Tokenizer) -> None:
        self._backend = backend
        self._forget()

    def __reduce__(self) -> tuple[type[Pieces], tuple[Tokenizer]]:
        return type(self), (self._backend,)

    def _forget(self) -> None:
        self._new: list[str] = []
        # Texts begin with the one kind of piece; the other follows a cut, and is kept without its space.
        self._first, self._later = _Numbers(self, ""), _Numbers(self, " ")
        # int32[sum of lengths] ids of all pieces, and int64[pieces + 1] where each begins.
        self._ids, self._starts = np.empty(0, np.int32), np.zeros(1, np.int64)
        self._size = 0

    def add(self, piece: str) -> int:
        """The number of a piece that is not known yet."""
        self._new.append(piece)
        self._size += _PIECE + len(piece)
        return len(self._starts) + len(self._new) - 2

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, without special tokens of the tokenizer's own."""
        if self._size > _ROOM:
            self._forget()
        first, later = self._first.__getitem__, self._later.__getitem__
        numbers: list[int] = []
        ends = []
        for text in texts:
            start, *rest = _CUT.split(text)
            numbers.append(first(start))
            numbers.extend(map(later, rest))
            ends.append(len(numbers))
        self._learn()
        pieces = np.array(numbers, np.int64)
        starts = self._starts[pieces]
        lengths = self._starts[pieces + 1] - starts
        stops = np.cumsum(lengths)
        places = np.repeat(starts - stops + lengths, lengths)
        places += np.arange(len(places))
        ids = self._ids[places].tolist()
        bounds = [0, *stops[np.array(ends) - 1].tolist()]
        return [ids[start:stop] for start, stop in pairwise(bounds)]

    def _learn(self) -> None:
        """Tokenise the pieces that are new."""
        if not self._new:
            return
        ids = [
            encoding.ids for encoding in self._backend.encode_batch_fast(self._new, add_special_tokens=False)
        ]
        self._new = []
        self._ids = np.concatenate([self._ids, np.fromiter(chain.from_iterable(ids), np.int32)])
        more = np.cumsum(np.fromiter(map(len, ids), np.int64, len(ids)))
        self._starts = np.concatenate([self._starts, self._starts[-1] + more])


class _Numbers(dict[str, int]):
    """The numbers of pieces; one that is not there is added to `pieces`, after `before`."""

    def __init__(self, pieces: Pieces, before: str) -> None:
        # No circle, so that what is remembered goes with its tokenizer.
        self._pieces, self._before = weakref.proxy(pieces), before

    def __missing__(self, piece: str) -> int:
        number: int = self._pieces.add(self._before + piece)
        self[piece] = number
        return number


def can_be_cut(backend: Tokenizer) -> bool:
    """Whether the ids of pieces are those of the whole: byte-level BPE that splits words as in SPLITS."""
    words = _form(backend.pre_tokenizer)
    patterns = {*patterns_of(words)}
    return (
        isinstance(backend.model, models.BPE)
        and not backend.model.dropout
        and (_form(backend.normalizer) or {"type": "NFC"})["type"] == "NFC"
        and patterns <= {*SPLITS, DIGITS}
        and not patterns.isdisjoint(SPLITS)
        and '"add_prefix_space": true' not in json.dumps(words)
        and not any(
            " " in token.content or token.lstrip or token.rstrip or token.single_word
            for token in backend.get_added_tokens_decoder().values()
        )
    )


def patterns_of(form: Mapping[str, Any] | None) -> Iterator[str]:
    """The regular expressions of a tokenizer.json's `pre_tokenizer` in turn; its type where it is none."""
    kind = form["type"] if form else "nothing"
    if form is None:
        yield kind
    elif kind == "Sequence":
        for part in form["pretokenizers"]:
            yield from patterns_of(part)
    elif kind == "Digits" and form["individual_digits"]:
        yield DIGITS
    elif kind == "Split" and form["behavior"] == "Isolated" and "Regex" in form["pattern"]:
        yield form["pattern"]["Regex"]
    elif kind == "ByteLevel":
        if form["use_regex"]:
            yield GPT2
    else:
        yield kind


def _form(part: Any) -> dict[str, Any] | None:
    """A part of a tokenizer as tokenizer.json has it."""
    form: dict[str, Any] | None = None if part is None else json.loads(part.__getstate__())
    return form
