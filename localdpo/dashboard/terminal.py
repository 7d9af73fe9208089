"""What the terminal can show, and the marks that stand for states: each with an ASCII twin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from localdpo.core.text import printable

# Terminals whose fonts have neither blocks nor braille, whatever the locale says.
_PLAIN_TERMS: Final = frozenset({"linux", "dumb", "vt100", "vt102", "vt220", "ansi", "cons25"})

# Meaning -> (glyph, ASCII twin). A state is never told by colour alone.
MARKS: Final[Mapping[str, tuple[str, str]]] = {
    "new": ("○", "."),
    "starting": ("○", "."),
    "loading": ("◌", "."),
    "reference": ("◍", "%"),
    "running": ("●", "*"),
    "training": ("●", "*"),
    "evaluating": ("◉", "@"),
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

    def mark(self, name: str) -> str:
        """The glyph of MARKS for `name`, in ASCII where the terminal has no more. KeyError if unknown."""
        return MARKS[name][0 if self.unicode else 1]


def line_filters(own: Sequence[LineFilter], abilities: Abilities) -> list[LineFilter]:
    """What every line of an app goes through: Textual's `own` (NO_COLOR), and ours for the terminal."""
    filters = [*own, TextFilter()]
    return filters if abilities.unicode else [*filters, AsciiFilter()]


def abilities_of(environment: Mapping[str, str]) -> Abilities:
    """The abilities that the environment tells of: TERM, COLORTERM, the locale, NO_COLOR, LOCALDPO_ASCII."""
    term = environment.get("TERM", "").lower()
    colour = "NO_COLOR" not in environment and term != "dumb"
    return Abilities(_has_unicode(environment, term), colour, _colours(environment, term) if colour else 0)


def _has_unicode(environment: Mapping[str, str], term: str) -> bool:
    if environment.get("LOCALDPO_ASCII", "") not in ("", "0") or term in _PLAIN_TERMS:
        return False
    # The first of these that is set decides, as in the C library; without any, today's terminals do.
    locale = next(
        (environment[key] for key in ("LC_ALL", "LC_CTYPE", "LANG") if environment.get(key)), "utf-8"
    )
    return locale.lower().replace("-", "").endswith("utf8")


def _colours(environment: Mapping[str, str], term: str) -> int:
    if environment.get("COLORTERM", "").lower() in ("truecolor", "24bit"):
        return 2**24
    return 256 if "256color" in term or "kitty" in term else 16


class TextFilter(LineFilter):
    """Takes out what would steer the terminal. Widgets show it as its escape; this is for what they miss."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """`segments` of the same width in cells."""
        return [
            segment
            if segment.control or printable(segment.text) == segment.text
            else Segment(_harmless(segment.text), segment.style)
            for segment in segments
        ]


def _harmless(text: str) -> str:
    from rich.cells import get_character_cell_size

    return "".join(char if printable(char) == char else "?" * get_character_cell_size(char) for char in text)


class AsciiFilter(LineFilter):
    """Draws every line with ASCII only: borders, scrollbars and marks get a twin, other characters a `?`.

    Widgets that know better (charts, marks) draw in ASCII themselves; this catches what Textual draws.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """`segments` with their text in ASCII and of the same width in cells."""
        return [
            segment
            if segment.control or segment.text.isascii()
            else Segment(to_ascii(segment.text), segment.style)
            for segment in segments
        ]


def to_ascii(text: str) -> str:
    """`text` in ASCII, cell by cell: a character of two cells becomes two."""
    from rich.cells import get_character_cell_size

    return "".join(
        char if char.isascii() else _twin(char).ljust(get_character_cell_size(char), "?")[:2] for char in text
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


def _twin(char: str) -> str:
    return _TWINS.get(char, "?")
