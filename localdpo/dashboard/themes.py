"""The colours of the dashboard: Okabe and Ito's palette, which people of every colour vision tell apart.

Blue stands for chosen, the policy, what was added; orange for rejected, the reference, what was taken away;
vermillion for what is wrong. Green is used for nothing but a finished run, beside its mark and its word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from textual.theme import Theme


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
    dark: bool = True


PALETTES: Final[dict[str, Palette]] = {
    "dark": Palette(
        ground="#11151a",
        surface="#181d24",
        ink="#e4e8ec",
        muted="#8f9aa6",
        chosen="#56b4e9",
        rejected="#e69f00",
        critical="#ff7b33",
        good="#2fbf94",
        band="#24435a",
        line="#3b4550",
    ),
    "light": Palette(
        ground="#fbfbf9",
        surface="#f1f1ee",
        ink="#1c2126",
        muted="#5c6670",
        chosen="#0072b2",
        rejected="#8f5d00",
        critical="#b53d00",
        good="#00724f",
        band="#cfe3f0",
        line="#b9bfc5",
        dark=False,
    ),
    "contrast": Palette(
        ground="#000000",
        surface="#000000",
        ink="#ffffff",
        muted="#d0d0d0",
        chosen="#6cc7ff",
        rejected="#ffb000",
        critical="#ff8a5c",
        good="#3fe0b0",
        band="#00466b",
        line="#ffffff",
    ),
    # Exactly the colours that a terminal of 16 has, so that nothing is rounded to its neighbour.
    "16": Palette(
        ground="#000000",
        surface="#000000",
        ink="#ffffff",
        muted="#aaaaaa",
        chosen="#55ffff",
        rejected="#ffff55",
        critical="#ff5555",
        good="#55ff55",
        band="#0000aa",
        line="#aaaaaa",
    ),
}
# The order in which the theme key goes through them.
THEME_NAMES: Final = tuple(PALETTES)


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
        dark=palette.dark,
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
