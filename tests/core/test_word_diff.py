from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from localdpo.core.text import MOST_WORDS, count_words, word_diff

WORDS = st.lists(st.sampled_from(["a", "bb", "the", ",", ".", " ", "\n", "é", "😀", "don't"]), max_size=60)
TEXTS = st.one_of(st.text(max_size=60), WORDS.map(" ".join), WORDS.map("".join))


@given(TEXTS, TEXTS)
def test_the_pieces_are_both_texts(old: str, new: str) -> None:
    pieces = word_diff(old, new)
    assert "".join(text for op, text in pieces if op != "new") == old
    assert "".join(text for op, text in pieces if op != "old") == new
    assert all(text for _, text in pieces)
    assert all(one[0] != other[0] for one, other in itertools.pairwise(pieces))


@given(TEXTS)
def test_a_text_is_the_same_as_itself(text: str) -> None:
    assert word_diff(text, text) == ([("same", text)] if text else [])


def test_whole_words_are_marked_and_the_old_ones_come_first() -> None:
    assert word_diff("the sky is blue.", "the sky was grey.") == [
        ("same", "the sky "),
        ("old", "is blue"),
        ("new", "was grey"),
        ("same", "."),
    ]
    assert word_diff("", "new") == [("new", "new")]
    assert word_diff("old", "") == [("old", "old")]


def test_words_are_counted_without_white_space() -> None:
    pieces = word_diff("one two three", "one 2 and 3, four")
    assert count_words(pieces, "new") == 5
    assert count_words(pieces, "old") == 2
    assert count_words(pieces, "same") == 1


def test_a_long_middle_is_one_replacement() -> None:
    old = "start " + " ".join(str(i) for i in range(MOST_WORDS)) + " end"
    new = "start " + " ".join(str(i) for i in range(MOST_WORDS, 0, -1)) + " end"
    assert [op for op, _ in word_diff(old, new)] == ["same", "old", "new", "same"]
