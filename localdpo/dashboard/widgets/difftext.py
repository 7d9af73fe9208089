"""A text with the words marked by which it differs from another: by colour, by style and by brackets."""

from __future__ import annotations

from typing import Final, Literal

from localdpo.core.text import counted, printable, word_diff
from localdpo.dashboard.themes import Palette
from localdpo.out.console import Text

# Laying out a text takes a second or so for 100,000 characters, each time that it is drawn.
_LONGEST: Final = 50_000
# Around words that only this side has: (Unicode, ASCII).
_BRACKETS: Final = {"new": (("«", "»"), ("{+", "+}")), "old": (("⟨", "⟩"), ("[-", "-]"))}


def clean(text: str) -> str:
    """`text` with its line breaks, without other characters that would steer the terminal.

    Of a very long text the first _LONGEST characters are shown, and how many more there are.
    """
    shown = "\n".join(printable(line) for line in text[:_LONGEST].split("\n"))
    rest = len(text) - _LONGEST
    return shown if rest <= 0 else f"{shown}\n... {counted(rest, 'character')} more"


def diff_text(old: str, new: str, side: Literal["old", "new"], palette: Palette, unicode: bool) -> Text:
    """One side of a comparison: the text of that side, what the other does not have marked.

    New words are blue, underlined and in « », old ones orange, struck through and in ⟨ ⟩; in ASCII they
    stand in {+ +} and [- -]. White space that changed has no marks of its own.
    """
    style = f"bold underline {palette.chosen}" if side == "new" else f"strike {palette.rejected}"
    opening, closing = _BRACKETS[side][0 if unicode else 1]
    text = Text()
    for op, piece in word_diff(clean(old), clean(new)):
        if op == "same" or (op == side and not piece.strip()):
            text.append(piece)
        elif op == side:
            body = piece.strip()
            before, after = piece.split(body, 1)[0], piece[piece.index(body) + len(body) :]
            text.append(before)
            text.append(f"{opening}{body}{closing}", style)
            text.append(after)
    return text
