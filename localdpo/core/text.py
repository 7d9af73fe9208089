"""Text and numbers for people, the same wherever they are shown, and how two texts differ. Pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterator, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, Literal, TypeGuard, TypeVar

# What steers a terminal (C0, DEL, C1), reorders text or hides in it (marks of direction, invisible signs,
# tags), and lone surrogates. The two joiners stay, since scripts and emoji need them, and line break and tab.
_STEERING: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
ROLES: Final = ("system", "developer", "user", "assistant", "tool")
# A conversation as text is `role: text`, turn by turn, with an empty line between them.
_TURN: Final = re.compile(rf"(?:\A|\n\n)({'|'.join(ROLES)}): ")
Op = Literal["same", "old", "new"]
Piece = tuple[Op, str]
Items = TypeVar("Items", str, list[str])

# A word is a run of letters and digits, a run of white space, or one other character, so that the pieces put
# together are the text again.
_WORD: Final = re.compile(r"\w+|\s+|[^\w\s]")
# Matching takes time with the product of both lengths at worst; longer middles count as replaced.
MOST_WORDS: Final = 4000


def escaped(text: str) -> str:
    """`text` for a terminal: what would steer it, reorder text or hide in it shows as `\\x1b`, `\\u202e`."""
    return _STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def printable(text: str) -> str:
    """`text` as one line: escaped, a line break or a tab as a space."""
    return escaped(text).replace("\n", " ").replace("\t", " ")


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value of JSON is a number; Python counts true and false among them."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def json_or_none(value: object) -> Any:
    """What a text is the JSON of; None for other text, and for what is no text."""
    try:
        return json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return None


def format_value(value: Any) -> str:
    """A number as `format_number` does it, a list as its values, anything else as text in one line."""
    if value is None or is_number(value):
        return format_number(value)
    if isinstance(value, list | tuple):
        return ", ".join(map(format_value, value)) or "none"
    return " ".join(str(value).split())


def format_number(value: float | None) -> str:
    """At most five significant digits; a value that was not finite (null in the log) is `-`."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.5g}"


def format_brief(value: Any) -> str:
    """A number in three significant digits, a large one in all: `0.693`, `5e-06`, `2331`; `-` if none."""
    if not is_number(value):
        return "-"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def format_seconds(seconds: float) -> str:
    """`42s`, `3m 05s`, `2h 07m`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}m {rest:02d}s"
    return f"{minutes // 60}h {minutes % 60:02d}m"


def counted(count: int, noun: str) -> str:
    """`1 row`, `1,200 rows`: for a noun whose plural ends in s."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def have(count: int, noun: str) -> str:
    """`1 pair has`, `1,200 pairs have`."""
    return f"{counted(count, noun)} {'has' if count == 1 else 'have'}"


def aligned(rows: Sequence[Sequence[str]], right: Container[int] = ()) -> list[str]:
    """Rows of cells as lines, two spaces between columns; `right`: indices of columns aligned right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def has_words(text: str, words: str) -> bool:
    """Whether `text` contains each of the words, in upper or lower case."""
    text = text.lower()
    return all(word in text for word in words.lower().split())


def excerpt(text: str, width: int = 60) -> str:
    """The beginning of a text on one line of at most `width` characters."""
    # White space may be most of a text: four times the width is looked at.
    line = printable(" ".join(text[: 4 * width].split()))
    return line if len(line) <= width and len(text) <= 4 * width else f"{line[: width - 1]}…"


def age(seconds: float) -> str:
    """How long ago: `12s ago`, `5m ago`, `3h ago`, `2d ago`."""
    whole = max(0, round(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if whole >= size:
            return f"{whole // size}{unit} ago"
    return f"{whole}s ago"


def turns_of(text: str) -> list[tuple[str, str]]:
    """(role, text) of each turn of a conversation as text, in order; any other text is one without a role."""
    if _TURN.match(text) is None:
        return [("", text)]
    _, *parts = _TURN.split(text)
    return list(zip(parts[::2], parts[1::2], strict=True))


def common_prefix(texts: Sequence[Items]) -> Items:
    """The longest beginning that one or more texts share, by character; of lists, by item."""
    # The least and the greatest differ where any two do.
    low, high = min(texts), max(texts)
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
    return low[:length]


def word_diff(old: str, new: str) -> list[Piece]:
    """How `new` differs from `old`, as pieces of text in order.

    The pieces "same" and "new" together are `new`, "same" and "old" together are `old`; where both stand at
    one place, "old" comes first. No piece is empty and neighbours have different ops. Beyond MOST_WORDS words
    on either side (after what both begin and end with) the whole middle is one replacement.
    """
    before, after = _WORD.findall(old), _WORD.findall(new)
    start = len(common_prefix([before, after]))
    end = len(common_prefix([before[start:][::-1], after[start:][::-1]]))
    middle_old, middle_new = before[start : len(before) - end], after[start : len(after) - end]
    pieces: list[Piece] = [("same", "".join(before[:start])), *_middle(middle_old, middle_new)]
    pieces.append(("same", "".join(before[len(before) - end :])))
    kinds = groupby((piece for piece in pieces if piece[1]), key=itemgetter(0))
    return [(op, "".join(text for _, text in alike)) for op, alike in kinds]


def count_words(pieces: list[Piece], op: Op) -> int:
    """How many words (white space does not count) the pieces of one op hold."""
    texts = [text for kind, text in pieces if kind == op]
    return sum(not word.isspace() for text in texts for word in _WORD.findall(text))


def changes(pieces: list[Piece]) -> str:
    """`1 word new, 3 gone`."""
    return f"{counted(count_words(pieces, 'new'), 'word')} new, {count_words(pieces, 'old')} gone"


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
