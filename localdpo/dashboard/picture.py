"""A rectangle of character cells that is drawn by hand and then becomes lines of styled text."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Final

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from localdpo.dashboard.terminal import Palette, blend

# What a cell's colour means; a cell holds its index in this table. "" is the text's own colour.
COLOURS: Final = ("", "ink", "muted", "line", "chosen", "rejected", "critical", "good", "ground")
# How much of a series' colour its band takes over the ground.
_TINT: Final = 0.24
# Bits of a cell's style: colour of the text, of the tint behind it, and these.
_GROUND: Final = 0xF0
_BOLD: Final = 1 << 12
_PALE: Final = 1 << 13


class Picture:
    """Cells [height, width], blank at first. Colours are names of COLOURS."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.codes = np.full((height, width), ord(" "), dtype="<u4")
        self._styles = np.zeros((height, width), dtype=np.uint16)

    def part(self, top: int, left: int, height: int, width: int) -> Picture:
        """A rectangle of the picture, as one that shares its cells."""
        part = object.__new__(Picture)
        part.codes = self.codes[top : top + height, left : left + width]
        part._styles = self._styles[top : top + height, left : left + width]
        part.height, part.width = part.codes.shape
        return part

    def put(self, row: int, column: int, text: str, colour: str = "", bold: bool = False) -> None:
        """Write `text` from a cell on; what lies outside is cut. Every character must be one cell wide."""
        if not 0 <= row < self.height:
            return
        text, column = text[max(0, -column) :], max(0, column)
        text = text[: max(0, self.width - column)]
        if text:
            end = column + len(text)
            self.codes[row, column:end] = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
            styles = self._styles[row, column:end]
            styles &= np.uint16(_GROUND)
            styles |= np.uint16(COLOURS.index(colour) | (_BOLD if bold else 0))

    def fill(
        self,
        cells: np.ndarray | tuple[np.ndarray, np.ndarray],
        char: str | np.ndarray,
        colour: str = "",
        bold: bool = False,
        pale: bool = False,
    ) -> None:
        """Write one character, or codes of as many cells, into some cells.

        `cells`: a mask [height, width], or (rows, columns). `pale`: in the shade of `colour` that `tint`
        uses for the ground.
        """
        flags = COLOURS.index(colour) | (_BOLD if bold else 0) | (_PALE if pale else 0)
        self.codes[cells] = ord(char) if isinstance(char, str) else char
        self._styles[cells] = (self._styles[cells] & np.uint16(_GROUND)) | np.uint16(flags)

    def tint(self, mask: np.ndarray, colour: str) -> None:
        """Give the cells of `mask` [height, width] a ground in a shade of `colour` ("": the usual ground)."""
        ground = np.uint16(COLOURS.index(colour) << 4)
        self._styles[mask] = (self._styles[mask] & ~np.uint16(_GROUND)) | ground

    def strips(self, palette: Palette) -> list[Strip]:
        """The rows in the colours of a palette."""
        strips = []
        for codes, styles in zip(self.codes, self._styles, strict=True):
            text = codes.tobytes().decode("utf-32-le")
            cuts = [0, *(np.flatnonzero(np.diff(styles)) + 1).tolist(), self.width]
            segments = [
                Segment(text[begin:end], _style(palette, int(styles[begin])))
                for begin, end in itertools.pairwise(cuts)
                if begin < end
            ]
            strips.append(Strip(segments or [Segment("", _style(palette, 0))], self.width))
        return strips


@cache
def _style(palette: Palette, code: int) -> Style:
    """The style of a cell under a palette. Never None: NO_COLOR fails on that."""
    name, ground = COLOURS[code & 0xF], COLOURS[code >> 4 & 0xF]
    colour = getattr(palette, name or "ink")
    if code & _PALE:
        colour = blend(palette.ground, colour, _TINT)
    back = blend(palette.ground, getattr(palette, ground), _TINT) if ground else palette.ground
    return Style(color=colour, bgcolor=back, bold=bool(code & _BOLD))


def fitted(text: str, width: int, ellipsis: str = "…") -> str:
    """`text` in at most `width` cells, its end replaced by `ellipsis` where it is longer."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(0, width - len(ellipsis))) + ellipsis[: max(0, width)]
