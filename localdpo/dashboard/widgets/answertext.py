"""The text of an answer: differing words marked, or tokens tinted by their reward.

Tints: blue is what the policy was rewarded for, orange with an underline what it was penalised for; the
strongest of both are bold as well, so that the text can be read without colours. Characters that several
tokens make together carry the sum of their rewards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from rich.style import Style

from localdpo.core.text import counted, printable, turns_of, word_diff
from localdpo.dashboard.terminal import Abilities, Palette, blend, ink_on
from localdpo.out.console import Text

# Laying out a text takes a second or so for 100,000 characters, each time that it is drawn.
_LONGEST: Final = 50_000
# Around words that only this side has: (Unicode, ASCII).
_BRACKETS: Final = {"new": (("«", "»"), ("{+", "+}")), "old": (("⟨", "⟩"), ("[-", "-]"))}

SHADES: Final = 4
# At this share of the tokens' rewards the tint is at its strongest: one outlier must not pale the rest.
SCALE_QUANTILE: Final = 0.95
_STRONG: Final = 3
_LEAST: Final = 1e-6


def clean(text: str) -> str:
    """`text` with its line breaks, without other characters that would steer the terminal.

    Of a very long text the first _LONGEST characters are shown, and how many more there are.
    """
    shown = "\n".join(printable(line) for line in text[:_LONGEST].split("\n"))
    rest = len(text) - _LONGEST
    return shown if rest <= 0 else f"{shown}\n... {counted(rest, 'character')} more"


def prompt_view(text: str, palette: Palette) -> Text:
    """A prompt: of a conversation the last question first, then what came before it, each with its role."""
    turns = turns_of(text)
    last = max((i for i, (role, _) in enumerate(turns) if role == "user"), default=len(turns) - 1)
    view = Text()
    for index in [last, *(i for i in range(len(turns)) if i != last)]:
        role, said = turns[index]
        if view.plain:
            view.append("\n")
        if role:
            view.append(f" {role} ", f"reverse {palette.muted}").append(" ")
        view.append(clean(said))
    return view


def diff_text(
    old: str, new: str, side: Literal["old", "new"], palette: Palette, abilities: Abilities
) -> Text:
    """One side of a comparison: the text of that side, with the words marked that the other lacks.

    New words are blue, underlined and in « », old ones orange, struck through and in ⟨ ⟩; in ASCII they
    stand in {+ +} and [- -]. White space that changed is not marked.
    """
    style = f"bold underline {palette.chosen}" if side == "new" else f"strike {palette.rejected}"
    opening, closing = _BRACKETS[side][0 if abilities.unicode else 1]
    text = Text()
    for op, piece in word_diff(clean(old), clean(new)):
        if op == "same" or (op == side and not piece.strip()):
            text.append(piece)
        elif op == side:
            body = piece.strip()
            before, after = piece.split(body, 1)[0], piece[piece.index(body) + len(body) :]
            text.append(before).append(f"{opening}{body}{closing}", style).append(after)
    return text


Token = tuple[str, float]


@dataclass(frozen=True)
class Tinting:
    """How tokens are shown. `limit`: the reward of the strongest tint, above 0."""

    limit: float
    as_numbers: bool
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


def style_of(shade: int, tinting: Tinting) -> Style:
    """Tint, underline below 0, bold for the strongest."""
    if shade == 0:
        return Style()
    strong = abs(shade) >= _STRONG
    plain = Style(bold=strong, underline=shade < 0)
    if not tinting.abilities.colour:
        return plain + Style(reverse=strong and shade > 0)
    end = tinting.palette.chosen if shade > 0 else tinting.palette.rejected
    if tinting.abilities.has_few_colours:
        return plain + Style(color=end)
    ground = blend(tinting.palette.ground, end, abs(shade) / SHADES * 0.85)
    return plain + Style(color=ink_on(ground), bgcolor=ground)


def tokens_text(tokens: Sequence[Token], tinting: Tinting) -> Text:
    """The response, each token tinted, or marked off with its reward behind it."""
    text = Text()
    for piece, reward in spans(tokens):
        shade = shade_of(reward, tinting.limit)
        if tinting.as_numbers:
            number = f"[{signed(reward)}]"
            shown = visible(piece, tinting.abilities.unicode, number)
            start = len(text) + shown.rindex(number)
            text.append(shown, style_of(shade, tinting))
            text.stylize(
                Style(color=tinting.palette.muted, bgcolor=tinting.palette.ground), start, start + len(number)
            )
        else:
            text.append(visible(piece, tinting.abilities.unicode), style_of(shade, tinting))
    return text


def tints_legend(tinting: Tinting, meaning: str = "token reward") -> Text:
    """`-0.120 [tints] +0.120`, and what the tints mean."""
    text = Text(f"{-tinting.limit:+.3f} ", style=tinting.palette.muted, no_wrap=True, overflow="ellipsis")
    for shade in range(-SHADES, SHADES + 1):
        text.append(f" {'-' if shade < 0 else '+' if shade > 0 else '0'} ", style_of(shade, tinting))
    text.append(f" {tinting.limit:+.3f} ", style=tinting.palette.muted)
    return text.append(f" {meaning}; underlined: below 0", style=tinting.palette.muted)


def signed(value: float) -> str:
    """`+0.120`; a rounded zero has no minus, and what is no number is `-`."""
    return "-" if math.isnan(value) else f"{round(value, 3) + 0.0:+.3f}"


def spans(tokens: Sequence[Token]) -> list[Token]:
    """(text, reward); tokens without text of their own are added to the one that completes them."""
    merged: list[Token] = []
    pending = 0.0
    for index, (piece, reward) in enumerate(tokens):
        pending += reward
        if piece or index == len(tokens) - 1:
            merged.append((piece, pending))
            pending = 0.0
    return merged


def visible(piece: str, unicode: bool, behind: str = "") -> str:
    """A token without what would steer the terminal; line breaks are shown and kept."""
    sign = "⏎" if unicode else "\\n"
    body = piece.rstrip("\n")
    breaks = len(piece) - len(body)
    shown = f"{sign}\n".join(printable(line) for line in body.split("\n"))
    return f"{shown}{sign * breaks}{behind}{chr(10) if breaks else ''}"
