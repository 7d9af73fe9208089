"""Rich's console and text, escaped; rich's own silently drop some control characters and pass others."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self, cast

import rich.console
import rich.text
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.style import Style

from localdpo.core.text import escaped
from localdpo.out import Escaped


class Console(rich.console.Console):
    """A console that takes no text for markup and shows what would steer the terminal as its escape."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, highlight=False, emoji=False, **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        # Here, so that tables and wrapping count the escapes' cells.
        return map(_clean, super().render(renderable, options))

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        # The last point before the file, which everything passes.
        return Escaped(super()._render_buffer(map(_clean, buffer)))


class Text(rich.text.Text):
    """Text with a style; what would steer the terminal is in it as its escape."""

    def __init__(self, text: str = "", style: str | Style = "", **options: Any) -> None:
        super().__init__(escaped(text), style, **options)

    @classmethod
    def assemble(cls, *parts: Any, **options: Any) -> Self:
        return cast(Self, super().assemble(*parts, **options))

    def append_text(self, text: rich.text.Text) -> Self:
        super().append_text(text)
        return self

    def append(self, text: rich.text.Text | str, style: str | Style | None = None) -> Self:
        super().append(escaped(text) if isinstance(text, str) else text, style)
        return self


def _clean(segment: Segment) -> Segment:
    """The segment with its text escaped and without a link; rich's own control codes as they are."""
    text, style, control = segment
    if control:
        return segment
    if style is not None and style.link:
        style = style.update_link(None)
    return Segment(escaped(text), style)
