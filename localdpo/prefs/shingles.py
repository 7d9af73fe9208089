"""Hashes of words and of runs of words, and MinHash signatures, for many texts at once in NumPy.

A word is a run of letters and digits, in lower case; a character of Chinese, Japanese or Korean is a word of
its own. All hashes are 64-bit, the same in every process. MinHash: Broder, "On the resemblance and
containment of documents" (1997).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

SHINGLE_WORDS = 3
SIGNATURE = 32
BANDS = 8
_SPACE = 0x20
# UTF-8 first bytes of the blocks where no spaces part the words: kana, Han, Hangul.
_FIRST_IDEOGRAPH, _LAST_IDEOGRAPH = 0xE3, 0xED
# First two bytes of the block "General Punctuation": curly quotes and dashes.
_PUNCTUATION = (0xE2, 0x80)
_BASE = 0x9E3779B97F4A7C15


_LETTERS = np.array([c if c > 127 or chr(c).isalnum() else _SPACE for c in range(256)], np.uint8)
_MULTIPLIERS: Hashes = np.random.Generator(np.random.PCG64(7)).integers(
    1, 2**63, size=SIGNATURE, dtype=np.uint64
) * np.uint64(2) + np.uint64(1)


def mix(values: Hashes) -> Hashes:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the value."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def normalised(text: str) -> str:
    """Lower case, with compatibility forms of characters made one."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower()


class Words:
    """The words of some texts: `hashes` uint64[W] of each, and `owner` int64[W], the text that it is in.

    Words stand in the order of the texts. Memory while it is made: some 40 bytes a character.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = len(texts)
        parts = [normalised(text).encode("utf-8", "surrogatepass") for text in texts]
        letters = _LETTERS[np.frombuffer(b" ".join(parts) + b"   ", dtype=np.uint8)]
        quote = (letters[:-2] == _PUNCTUATION[0]) & (letters[1:-1] == _PUNCTUATION[1])
        for place in np.flatnonzero(quote):
            letters[place : place + 3] = _SPACE
        starts, ends = _spans(letters)
        self.hashes = _span_hashes(letters, starts, ends)
        borders = np.cumsum([len(part) + 1 for part in parts]) if parts else np.zeros(0, np.int64)
        self.owner: NDArray[np.int64] = np.searchsorted(borders, starts, side="right").astype(np.int64)

    def keys(self) -> list[int]:
        """A hash of all words of each text in their order; 0 for a text without words."""
        keys = np.zeros(self.texts, np.uint64)
        if len(self.hashes):
            first = np.flatnonzero(np.append(True, self.owner[1:] != self.owner[:-1]))
            counts = np.diff(np.append(first, len(self.owner)))
            place = np.arange(len(self.owner)) - np.repeat(first, counts)
            ordered = mix(self.hashes + mix(place.astype(np.uint64)))
            keys[self.owner[first]] = np.add.reduceat(ordered, first)
        return [int(key) for key in keys]

    def runs(self, count: int) -> tuple[Hashes, NDArray[np.int64]]:
        """(hashes, numbers of their first words) of all runs of `count` words within one text."""
        if len(self.hashes) < count:
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        last = len(self.hashes) - count + 1
        total = np.zeros(last, np.uint64)
        for step in range(count):
            total += self.hashes[step : step + last] * _power(step)
        starts = np.flatnonzero(self.owner[:last] == self.owner[count - 1 :])
        return mix(total[starts]), starts

    def shingles(self) -> tuple[Hashes, NDArray[np.int64]]:
        """(hashes, owners) of all runs of SHINGLE_WORDS words; a shorter text is one shingle as a whole."""
        total = self.hashes.copy()
        whole = np.ones(len(total), np.bool_)
        whole[1:] = self.owner[1:] != self.owner[:-1]
        for step in range(1, min(SHINGLE_WORDS, len(total))):
            same = self.owner[step:] == self.owner[:-step]
            total[:-step] += np.where(same, self.hashes[step:] * _power(step), np.uint64(0))
            if step == SHINGLE_WORDS - 1:
                whole[:-step] |= same
        return mix(total[whole]), self.owner[whole]


def _power(step: int) -> np.uint64:
    return np.uint64(pow(_BASE, step, 2**64))


def _spans(letters: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where words start and end (exclusive)."""
    inside = letters != _SPACE
    opens = inside.copy()
    opens[1:] &= ~inside[:-1]
    ideograph = (letters >= _FIRST_IDEOGRAPH) & (letters <= _LAST_IDEOGRAPH)
    opens |= ideograph
    starts = np.flatnonzero(opens)
    closes = np.flatnonzero(~inside)
    if not len(starts):
        return starts, starts
    ends = closes[np.searchsorted(closes, starts)]
    return starts, np.minimum(ends, np.append(starts[1:], len(letters)))


def _span_hashes(letters: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> Hashes:
    """Polynomial hashes mod 2^64 of the spans: sums of byte * base^place, moved to place 0."""
    size = len(letters)
    powers = np.full(size, _BASE, np.uint64)
    powers[0] = 1
    np.multiply.accumulate(powers, out=powers)
    sums = np.zeros(size + 1, np.uint64)
    np.cumsum((letters.astype(np.uint64) + np.uint64(1)) * powers, out=sums[1:])
    back = np.full(size, pow(_BASE, -1, 2**64), np.uint64)
    back[0] = 1
    np.multiply.accumulate(back, out=back)
    return mix((sums[ends] - sums[starts]) * back[starts])


def signatures(
    words: Words, boilerplate: Hashes | None = None
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """(uint32[N, SIGNATURE], int64[N] texts): MinHashes of the shingles of each text that has any.

    Shingles in `boilerplate` (sorted) do not count. Two texts agree in about as many of the SIGNATURE
    numbers as is the share of shingles that they have in common (Jaccard).
    """
    hashes, owner = words.shingles()
    if boilerplate is not None and len(boilerplate):
        kept = ~np.isin(hashes, boilerplate)
        hashes, owner = hashes[kept], owner[kept]
    if not len(hashes):
        return np.zeros((0, SIGNATURE), np.uint32), np.zeros(0, np.int64)
    first = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
    table = np.empty((len(first), SIGNATURE), np.uint32)
    for k, multiplier in enumerate(_MULTIPLIERS):
        table[:, k] = np.minimum.reduceat(hashes * multiplier, first) >> np.uint64(32)
    return table, owner[first]


def band_keys(table: NDArray[np.uint32], band: int) -> Hashes:
    """uint64[N]: a hash of one band of the signatures; texts that share one may be similar."""
    width = SIGNATURE // BANDS
    keys = np.zeros(len(table), np.uint64)
    for column in range(band * width, (band + 1) * width):
        keys = keys * np.uint64(_BASE) + table[:, column].astype(np.uint64)
    return mix(keys + np.uint64(band))
