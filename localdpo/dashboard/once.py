"""The dashboard as text or as a picture: `watch --once`, the tests' frames, the export to SVG."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any, Final

from localdpo.out.console import Console

if TYPE_CHECKING:
    from textual.app import App
    from textual.pilot import Pilot

    from localdpo.dashboard.app import DashboardApp

# Rich's pictures fetch a web font; whoever looks at ours is not asked to go online.
_WEB_FONTS: Final = re.compile(r"@font-face\s*\{.*?\}\s*", re.DOTALL)
_FONT: Final = "Fira Code, Menlo, DejaVu Sans Mono, Consolas, monospace"
_PATIENCE: Final = 0.02


def frame_text(app: App[Any]) -> str:
    """The screen as it stands now: one line of text a row, no escape codes, nothing after the last glyph."""
    width, _ = app.size
    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    console.print(_picture(app), end="")
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().split("\n")
    return "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"


def svg_of(app: App[Any]) -> str:
    """The screen as an SVG picture that refers to no address but those of its name spaces."""
    width, height = app.size
    console = Console(
        width=width,
        height=height,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        record=True,
        legacy_windows=False,
        safe_box=False,
    )
    console.print(_picture(app), end="")
    svg = _WEB_FONTS.sub("", console.export_svg(title="localdpo"))
    return svg.replace("Fira Code", _FONT).replace(f"{_FONT}, monospace", _FONT)


def _picture(app: App[Any]) -> Any:
    """What the compositor shows, screens below a dialog included. Textual has no public call for it."""
    return app.screen._compositor.render_update(full=True, screen_stack=app._background_screens)


def render_once(app: DashboardApp, size: tuple[int, int]) -> str:
    """One frame of `app` at (columns, rows) when the log has been read to its end; needs no terminal."""
    frames: list[str] = []

    async def take(pilot: Pilot[object]) -> None:
        while app.feed is not None and app.feed.behind:
            await pilot.pause(_PATIENCE)
        await pilot.pause()
        await pilot.pause(_PATIENCE)
        frames.append(frame_text(app))
        app.exit()

    app.run(headless=True, size=size, auto_pilot=take)
    return frames[0]
