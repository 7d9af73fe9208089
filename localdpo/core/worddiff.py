"""Which words of a text are new beside another one, and which are gone. Pure.

A word is a run of letters and digits, a run of white space, or one other character, so that the pieces put
together are the text again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Final, Literal

Op = Literal["same", "old", "new"]
Piece = tuple[Op, str]

_WORD: Final = re.compile(r"\w+|\s+|[^\w\s]")
# Matching takes time with the product of both lengths at worst; longer middles count as replaced.
MOST_WORDS: Final = 4000


def word_diff(old: str, new: str) -> list[Piece]:
    """How `new` differs from `old`, as pieces of text in order.

    The pieces "same" and "new" together are `new`, "same" and "old" together are `old`; where both stand at
    one place, "old" comes first. No piece is empty and neighbours have different ops. Beyond MOST_WORDS words
    on either side (after what both begin and end with) the whole middle is one replacement.
    """
    before, after = _WORD.findall(old), _WORD.findall(new)
    start = _shared(before, after)
    end = _shared(before[start:][::-1], after[start:][::-1])
    middle_old, middle_new = before[start : len(before) - end], after[start : len(after) - end]
    pieces = [("same", "".join(before[:start])), *_middle(middle_old, middle_new)]
    pieces.append(("same", "".join(before[len(before) - end :])))
    return list(_joined(pieces))


def count_words(pieces: list[Piece], op: Op) -> int:
    """How many words (white space does not count) the pieces of one op hold."""
    texts = [text for found, text in pieces if found == op]
    return sum(not word.isspace() for text in texts for word in _WORD.findall(text))


def _shared(one: list[str], other: list[str]) -> int:
    """How many words both begin with."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def _middle(old: list[str], new: list[str]) -> Iterator[Piece]:
    if max(len(old), len(new)) > MOST_WORDS:
        yield "old", "".join(old)
        yield "new", "".join(new)
        return
    # Lone spaces match everywhere and would cut a changed sentence into crumbs: they are junk to difflib,
    # which then only extends other matches by them.
    matcher = SequenceMatcher(lambda word: word.isspace(), old, new, autojunk=True)
    for tag, i, j, k, m in matcher.get_opcodes():
        if tag == "equal":
            yield "same", "".join(old[i:j])
        else:
            yield "old", "".join(old[i:j])
            yield "new", "".join(new[k:m])


def _joined(pieces: list[Piece]) -> Iterator[Piece]:
    """The pieces without empty ones, neighbours of one op put together."""
    held_op: Op = "same"
    held = ""
    for op, text in pieces:
        if not text:
            continue
        if op == held_op:
            held += text
            continue
        if held:
            yield held_op, held
        held_op, held = op, text
    if held:
        yield held_op, held
