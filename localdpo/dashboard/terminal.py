"""What the terminal can show, the marks that stand for states, each with an ASCII twin, and the colours.

The colours are Okabe and Ito's palette, which people of every colour vision tell apart. Blue stands for
chosen, the policy, what was added; orange for rejected, the reference, what was taken away; vermillion for
what is wrong. Green is used for nothing but a finished run, beside its mark and its word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from rich.cells import get_character_cell_size
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter
from textual.theme import Theme

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


@dataclass(frozen=True, eq=False)
class Palette:
    """Colours by meaning, `#rrggbb`, for what is drawn by hand. In style sheets they are `$chosen` and so on.

    Attributes:
        ground, surface, ink, muted: background, background of panels, text, text of less weight.
        chosen, rejected: the two sides of everything.
        critical, good: wrong, finished.
        band: tint of the range of values behind a chart's line. line: frames, axes, marked values.
    """

    ground: str
    surface: str
    ink: str
    muted: str
    chosen: str
    rejected: str
    critical: str
    good: str
    band: str
    line: str


# The themes, in the order in which their key goes through them. "16" has exactly the colours that a terminal
# of 16 has, so that nothing is rounded to its neighbour.
THEME_NAMES: Final = ("dark", "light", "contrast", "16")
_COLOURS: Final = {
    "ground": ("#11151a", "#fbfbf9", "#000000", "#000000"),
    "surface": ("#181d24", "#f1f1ee", "#000000", "#000000"),
    "ink": ("#e4e8ec", "#1c2126", "#ffffff", "#ffffff"),
    "muted": ("#8f9aa6", "#5c6670", "#d0d0d0", "#aaaaaa"),
    "chosen": ("#56b4e9", "#0072b2", "#6cc7ff", "#55ffff"),
    "rejected": ("#e69f00", "#8f5d00", "#ffb000", "#ffff55"),
    "critical": ("#ff7b33", "#b53d00", "#ff8a5c", "#ff5555"),
    "good": ("#2fbf94", "#00724f", "#3fe0b0", "#55ff55"),
    "band": ("#24435a", "#cfe3f0", "#00466b", "#0000aa"),
    "line": ("#3b4550", "#b9bfc5", "#ffffff", "#aaaaaa"),
}
PALETTES: Final = {
    name: Palette(**{meaning: of[place] for meaning, of in _COLOURS.items()})
    for place, name in enumerate(THEME_NAMES)
}

_NAMED: Final = ("chosen", "rejected", "critical", "good", "muted", "ink", "band", "line")
_SCROLLBAR_GROUNDS: Final = ("background", "background-hover", "background-active", "corner-color")


def theme_of(name: str) -> Theme:
    """The Textual theme of PALETTES[name]."""
    palette = PALETTES[name]
    return Theme(
        name=name,
        primary=palette.chosen,
        secondary=palette.rejected,
        accent=palette.chosen,
        warning=palette.rejected,
        error=palette.critical,
        success=palette.good,
        foreground=palette.ink,
        background=palette.ground,
        surface=palette.surface,
        panel=palette.surface,
        dark=name != "light",
        variables={
            **{name: getattr(palette, name) for name in _NAMED},
            "border": palette.line,
            "border-blurred": palette.line,
            "block-cursor-background": palette.chosen,
            "block-cursor-foreground": palette.ground,
            "block-cursor-text-style": "bold",
            "block-cursor-blurred-background": palette.band,
            "block-cursor-blurred-foreground": palette.ink,
            "input-cursor-background": palette.ink,
            "input-selection-background": palette.band,
            "scrollbar": palette.line,
            "scrollbar-hover": palette.muted,
            "scrollbar-active": palette.chosen,
            **{f"scrollbar-{part}": palette.ground for part in _SCROLLBAR_GROUNDS},
        },
    )


def blend(ground: str, colour: str, share: float) -> str:
    """The colour `share` of the way from `ground` to `colour`, all `#rrggbb`."""
    pairs = zip(_channels(ground), _channels(colour), strict=True)
    return "#" + "".join(f"{round(low + (high - low) * share):02x}" for low, high in pairs)


def ink_on(ground: str) -> str:
    """Black or white, whichever has more contrast on `ground` (relative luminance, WCAG 2.1)."""
    red, green, blue = (
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4
        for share in (channel / 255 for channel in _channels(ground))
    )
    return "#000000" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#ffffff"


def _channels(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
