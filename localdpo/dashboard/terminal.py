"""What the terminal can show, and the marks that stand for states: each with an ASCII twin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from rich.cells import get_character_cell_size
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from localdpo.core.text import printable

# Terminals whose fonts have neither blocks nor braille, whatever the locale says.
_PLAIN_TERMS: Final = frozenset({"linux", "dumb", "vt100", "vt102", "vt220", "ansi", "cons25"})

# Meaning -> (glyph, ASCII twin). A state is never shown by colour alone.
MARKS: Final[Mapping[str, tuple[str, str]]] = {
    "new": ("○", "."),
    "starting": ("○", "."),
    "loading": ("◌", "."),
    "reference": ("◍", "%"),
    "running": ("●", "*"),
    "training": ("●", "*"),
    "evaluating": ("◉", "@"),
    "sampling": ("◉", "@"),
    "saving": ("●", "*"),
    "tokenising": ("◌", "."),
    "paused": ("‖", "="),
    "finished": ("✓", "+"),
    "failed": ("✖", "X"),
    "crashed": ("✖", "X"),
    "stopped": ("■", "#"),
    "info": ("·", "-"),
    "notice": ("i", "i"),
    "warning": ("!", "!"),
    "critical": ("‼", "!!"),
    "waiting": ("…", "..."),
    "cursor": ("▸", ">"),
    "marked": ("■", "#"),
    "unmarked": (" ", " "),
    "tied": ("=", "="),
    "up": ("▲", "^"),
    "down": ("▼", "v"),
    "level": ("·", "-"),
    "done": ("━", "="),
    "todo": ("─", "-"),
    "here": ("●", "O"),
    "stop": ("┼", "+"),
    "old": ("-", "-"),
    "new_text": ("+", "+"),
    "unknown": ("·", "-"),
}


@dataclass(frozen=True)
class Abilities:
    """What the terminal can show.

    Attributes:
        unicode: blocks, braille and marks beyond ASCII.
        colour: False under NO_COLOR.
        colours: how many colours there are (0 without colour, 16, 256 or 2**24).
    """

    unicode: bool = True
    colour: bool = True
    colours: int = 2**24

    @property
    def has_few_colours(self) -> bool:
        """Whether there are no shades of a colour: what would be a tint is then shown by characters."""
        return not self.colour or self.colours <= 16

    @property
    def ellipsis(self) -> str:
        """What stands for the end of a text that was cut."""
        return "…" if self.unicode else "~"

    def mark(self, name: str) -> str:
        """The glyph of MARKS for `name`, in ASCII where the terminal has no more. KeyError if unknown."""
        return MARKS[name][0 if self.unicode else 1]


def abilities_of(environment: Mapping[str, str]) -> Abilities:
    """The abilities auto-detected from TERM, COLORTERM, the locale, NO_COLOR and LOCALDPO_ASCII."""
    term = environment.get("TERM", "").lower()
    # The first of these that is set decides, as in the C library; without any, today's terminals do.
    locale = next(
        (environment[key] for key in ("LC_ALL", "LC_CTYPE", "LANG") if environment.get(key)), "utf-8"
    )
    is_plain = environment.get("LOCALDPO_ASCII", "") not in ("", "0") or term in _PLAIN_TERMS
    has_unicode = not is_plain and locale.lower().replace("-", "").endswith("utf8")
    if "NO_COLOR" in environment or term == "dumb":
        return Abilities(has_unicode, colour=False, colours=0)
    if environment.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return Abilities(has_unicode)
    return Abilities(has_unicode, colours=256 if "256color" in term or "kitty" in term else 16)


class CharFilter(LineFilter):
    """Replaces characters of every line by others, cell by cell.

    Widgets show the escapes of what would steer the terminal (`without_controls`), and know better what to
    draw in ASCII (`to_ascii`): this is for what they miss, and for what Textual draws.
    """

    def __init__(self, replaced: Callable[[str], str]) -> None:
        super().__init__()
        self._replaced = replaced

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """`segments` of the same width in cells."""
        return [
            segment if segment.control else Segment(self._replaced(segment.text), segment.style)
            for segment in segments
        ]


def without_controls(text: str) -> str:
    """`text` with a `?` for each cell of a character that would steer the terminal."""
    if printable(text) == text:
        return text
    return "".join(char if printable(char) == char else "?" * get_character_cell_size(char) for char in text)


def to_ascii(text: str) -> str:
    """`text` in ASCII, cell by cell: borders and marks become their twins, others a `?` for each cell."""
    if text.isascii():
        return text
    return "".join(
        char if char.isascii() else _TWINS.get(char, "?").ljust(get_character_cell_size(char), "?")[:2]
        for char in text
    )


_TWINS: Final[Mapping[str, str]] = {
    **dict.fromkeys("─━┄┅┈┉═╌╍╴╶", "-"),
    # Hyphens, dashes and the minus sign; quotation marks.
    **dict.fromkeys((*map(chr, range(0x2010, 0x2016)), chr(0x2212)), "-"),
    **dict.fromkeys(map(chr, range(0x2018, 0x201C)), "'"),
    **dict.fromkeys(map(chr, range(0x201C, 0x2020)), '"'),
    **dict.fromkeys("│┃┆┇┊┋║╎╏▏▕▌▐▍▎▋▊▉", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯╔╗╚╝╠╣╦╩╬┏┓┗┛┣┫┳┻╋", "+"),
    **dict.fromkeys("▁▂▃▄▅▆▇█▀▓▒▔", "#"),
    **dict.fromkeys("«»", '"'),
    **dict.fromkeys("●◉•", "*"),
    **dict.fromkeys(("✖", chr(0xD7)), "x"),
    **{"░": ".", "·": ".", "…": "~", "✓": "+", "‖": "=", "■": "#", "‼": "!", "⏎": "$", "β": "b", "Δ": "d"},
    **{"▲": "^", "▼": "v", "▸": ">", "▶": ">", "◀": "<", "←": "<", "→": ">", "↑": "^", "↓": "v", "±": "~"},
    **{" ": " ", "○": "o", "◌": "o", "◍": "o"},
}
