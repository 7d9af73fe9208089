"""A response with the reward of each of its tokens: as tint with marks, or as numbers.

Blue is what the policy was rewarded for, orange with an underline what it was penalised for; the strongest of
both are bold as well, so that the view can be read without colours. Characters that several tokens make
together carry the sum of their rewards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.style import Style

from localdpo.core.text import printable
from localdpo.dashboard.terminal import Abilities
from localdpo.dashboard.themes import Palette
from localdpo.out.console import Text

SHADES: Final = 4
# At this share of the tokens' rewards the tint is at its strongest: one outlier must not pale the rest.
SCALE_QUANTILE: Final = 0.95
_STRONG: Final = 3
_LEAST: Final = 1e-6

Token = tuple[str, float]


@dataclass(frozen=True)
class View:
    """How tokens are drawn. `limit`: the reward of the strongest tint, above 0."""

    limit: float
    numbers: bool
    palette: Palette
    abilities: Abilities


def scale_of(*responses: Sequence[Token]) -> float:
    """The reward at which the tint of these responses' tokens is at its strongest, above 0."""
    sizes = sorted(abs(reward) for tokens in responses for _, reward in tokens if math.isfinite(reward))
    return max(sizes[round(SCALE_QUANTILE * (len(sizes) - 1))], _LEAST) if sizes else _LEAST


def shade_of(reward: float, limit: float) -> int:
    """-SHADES .. SHADES; 0 is no tint, as for a reward that is no number."""
    if math.isnan(reward):
        return 0
    size = min(SHADES, round(abs(reward) / limit * SHADES))
    return size if reward > 0 else -size


def style_of(shade: int, view: View) -> Style:
    """Tint, underline below 0, bold for the strongest."""
    if shade == 0:
        return Style()
    strong = abs(shade) >= _STRONG
    plain = Style(bold=strong, underline=shade < 0)
    if not view.abilities.colour:
        return plain + Style(reverse=strong and shade > 0)
    end = view.palette.chosen if shade > 0 else view.palette.rejected
    if view.abilities.colours <= 16:
        return plain + Style(color=end)
    ground = blend(view.palette.ground, end, abs(shade) / SHADES * 0.85)
    return plain + Style(color=ink_on(ground), bgcolor=ground)


def tokens_text(tokens: Sequence[Token], view: View) -> Text:
    """The response, each token tinted, or marked off with its reward behind it."""
    text = Text()
    for piece, reward in spans(tokens):
        shade = shade_of(reward, view.limit)
        if view.numbers:
            number = f"[{signed(reward)}]"
            shown = visible(piece, view.abilities.unicode, number)
            start = len(text) + shown.rindex(number)
            text.append(shown, style_of(shade, view))
            text.stylize(
                Style(color=view.palette.muted, bgcolor=view.palette.ground), start, start + len(number)
            )
        else:
            text.append(visible(piece, view.abilities.unicode), style_of(shade, view))
    return text


def legend(view: View) -> Text:
    """`-0.120 [tints] +0.120`, with what the marks mean."""
    text = Text(f"{-view.limit:+.3f} ", style=view.palette.muted, no_wrap=True, overflow="ellipsis")
    for shade in range(-SHADES, SHADES + 1):
        text.append(f" {'-' if shade < 0 else '+' if shade > 0 else '0'} ", style_of(shade, view))
    text.append(f" {view.limit:+.3f} ", style=view.palette.muted)
    return text.append(" token reward; underlined: below 0", style=view.palette.muted)


def signed(value: float) -> str:
    """`+0.120`; a rounded zero has no minus, and what is no number is `-`."""
    return "-" if math.isnan(value) else f"{round(value, 3) + 0.0:+.3f}"


def spans(tokens: Sequence[Token]) -> list[Token]:
    """(text, reward); tokens without text of their own are added to the one that completes them."""
    found: list[Token] = []
    waiting = 0.0
    for place, (piece, reward) in enumerate(tokens):
        waiting += reward
        if piece or place == len(tokens) - 1:
            found.append((piece, waiting))
            waiting = 0.0
    return found


def visible(piece: str, unicode: bool, behind: str = "") -> str:
    """A token without what would steer the terminal; line breaks are shown and kept."""
    sign = "⏎" if unicode else "\\n"
    body = piece.rstrip("\n")
    breaks = len(piece) - len(body)
    shown = f"{sign}\n".join(printable(line) for line in body.split("\n"))
    return f"{shown}{sign * breaks}{behind}{chr(10) if breaks else ''}"


def blend(ground: str, end: str, share: float) -> str:
    """The colour `share` of the way from `ground` to `end`."""
    parts = zip(_parts(ground), _parts(end), strict=True)
    red, green, blue = (round(a + (b - a) * share) for a, b in parts)
    return f"#{red:02x}{green:02x}{blue:02x}"


def ink_on(ground: str) -> str:
    """Black or white, whichever has more contrast on `ground` (relative luminance, WCAG 2.1)."""
    linear = [
        part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4
        for part in _parts(ground)
    ]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"


def _parts(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
