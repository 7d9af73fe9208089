"""The entries of the command palette: every key of the table by name, themes, the export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from textual.app import SystemCommand
from textual.screen import Screen

from localdpo.dashboard.keymap import key_name, keys_of, namespaced
from localdpo.dashboard.themes import THEME_NAMES

if TYPE_CHECKING:
    from localdpo.dashboard.app import DashboardApp


def commands(app: DashboardApp, screen: Screen) -> Iterator[SystemCommand]:
    """What can be done on `screen`, and everywhere."""
    names = dict.fromkeys(("", app.screen_name))
    for key in (key for name in names for key in keys_of(name)):
        if key.action in ("command_palette", "theme"):
            continue
        title = f"Go to {key.help}" if key.action.startswith("go(") else key.help.capitalize()
        shown = key_name(key.key, app.abilities.unicode)
        yield SystemCommand(title, f"key {shown}", _runner(app, namespaced(key), screen))
    for theme in THEME_NAMES:
        yield SystemCommand(f"Theme: {theme}", "key T: the next one", partial(app.set_theme, theme))
    yield SystemCommand("Export screen to SVG", "into the current folder", app.export_svg)


def _runner(app: DashboardApp, action: str, screen: Screen) -> Callable[[], None]:
    """Runs an action of `screen` once the palette is gone."""

    def run() -> None:
        app.call_later(screen.run_action, action)

    return run
