"""Words, runs and MinHash signatures: the same words have the same hashes, wherever they stand."""

from __future__ import annotations

import random

import numpy as np
import pytest
from clean_pairs import text
from hypothesis import given
from hypothesis import strategies as st

from localdpo.prefs.shingles import BANDS, SIGNATURE, Words, band_keys, signatures


def words_of(*texts: str) -> list[list[int]]:
    """The hashes of the words of each text."""
    found = Words(texts)
    return [found.hashes[found.owner == i].tolist() for i in range(len(texts))]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Hello, world!", "hello   WORLD"),
        ("it\u2019s \u201cfine\u201d", "it s fine"),
        ("\uff21\uff22 c", "ab c"),
        ("a\u2014b", "a b"),
        ("中文", "中 文"),
        ("x=1;y", "x 1 y"),
    ],
)
def test_case_and_punctuation_do_not_count(one: str, other: str) -> None:
    first, second = words_of(one, other)
    assert first == second
    assert len(first) > 1


def test_a_word_has_one_hash_wherever_it_stands() -> None:
    first, second, third = words_of("alpha beta", "gamma alpha", "")
    assert first[0] == second[1]
    assert len({*first, *second}) == 3
    assert third == []


@given(st.lists(st.text(max_size=20), max_size=6))
def test_a_text_hashes_alone_as_among_others(texts: list[str]) -> None:
    assert words_of(*texts) == [words_of(one)[0] for one in texts]


def test_runs_stay_within_a_text() -> None:
    words = Words(["a b c d", "b c", "e a b c"])
    hashes, starts = words.runs(3)
    assert words.owner[starts].tolist() == [0, 0, 2, 2]
    assert hashes[0] == hashes[3]
    assert len(set(hashes.tolist())) == 3
    assert len(Words(["a"]).runs(3)[0]) == 0


def test_shingles_are_runs_of_three_or_a_short_text_as_a_whole() -> None:
    hashes, owner = Words(["a b c d", "a b", "", "a"]).shingles()
    assert owner.tolist() == [0, 0, 1, 3]
    assert len(set(hashes.tolist())) == 4


def test_signatures_agree_in_about_the_share_of_common_shingles() -> None:
    rng = random.Random(3)
    gaps = []
    for changed in (0, 5, 20, 60):
        one = text(rng, 200).split()
        other = one[:-changed] + text(rng, changed).split() if changed else list(one)
        first, second = ({tuple(side[i : i + 3]) for i in range(198)} for side in (one, other))
        table, texts = signatures(Words([" ".join(one), " ".join(other)]))
        assert texts.tolist() == [0, 1]
        wanted = len(first & second) / len(first | second)
        gaps.append(abs(float((table[0] == table[1]).mean()) - wanted))
    # The standard error of a share from 32 numbers is at most 0.09.
    assert gaps[0] == 0
    assert max(gaps) < 0.27


def test_boilerplate_does_not_count() -> None:
    template = text(random.Random(1), 50)
    words = Words([f"{template} one two three four", f"{template} five six seven eight", template])
    shared, _ = Words([template]).shingles()
    table, texts = signatures(words, np.sort(shared))
    assert texts.tolist() == [0, 1]
    assert (table[0] == table[1]).mean() < 0.2


def test_texts_without_words_have_no_signature() -> None:
    table, texts = signatures(Words(["", "!?", "a"]))
    assert texts.tolist() == [2]
    assert table.shape == (1, SIGNATURE)
    assert signatures(Words([]))[0].shape == (0, SIGNATURE)


def test_equal_signatures_share_every_band() -> None:
    table, _ = signatures(Words(["a b c d e", "a b c d e", "v w x y z"]))
    for band in range(BANDS):
        keys = band_keys(table, band)
        assert keys[0] == keys[1] != keys[2]
