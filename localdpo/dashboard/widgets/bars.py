"""The first and the last line of every screen: the screens there are, and the keys that work here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast

from rich.cells import cell_len
from rich.style import Style
from textual import events
from textual.reactive import reactive
from textual.widget import Widget

from localdpo.dashboard.keymap import SCREEN_TITLES, Key, key_name, keys_of, namespaced
from localdpo.out.console import Text

if TYPE_CHECKING:
    from localdpo.dashboard.app import DashboardApp

# Shown at the right end of the last line whatever else has room.
_ALWAYS: Final = ("question_mark", "q")
_GAP: Final = "  "


def _action(action: str) -> Style:
    """What a click on the text does. (Textual's own @click would underline it.)"""
    return Style(meta={"action": action})


class ActionBar(Widget):
    """A line of text whose parts do something when they are clicked."""

    async def on_click(self, event: events.Click) -> None:
        action = event.style.meta.get("action")
        if action is not None:
            await self.screen.run_action(action)


class TopBar(ActionBar):
    """The screens by number, the current one marked; at the right what the worker was asked for.

    Attributes:
        status: `asked to pause, waiting 2s`, empty when nothing waits.
    """

    status: reactive[str] = reactive("")

    def __init__(self, screen: str) -> None:
        super().__init__()
        self._screen = screen

    def render(self) -> Text:
        app = cast("DashboardApp", self.app)
        palette = app.palette
        line = Text(no_wrap=True, overflow="ellipsis")
        is_wide = self.size.width >= len("localdpo") + sum(len(title) + 4 for title in SCREEN_TITLES.values())
        if is_wide:
            line.append("localdpo ", f"bold {palette.chosen}")
        for number, (name, title) in enumerate(SCREEN_TITLES.items(), start=1):
            is_here = name == self._screen
            words = f" {number} {title} " if is_wide or is_here else f" {number} "
            style = Style.parse(f"bold reverse {palette.chosen}" if is_here else palette.muted)
            line.append(words, style + _action(f"app.go('{name}')"))
        if self.status:
            line.append(" " * max(1, self.size.width - line.cell_len - cell_len(self.status)))
            line.append(self.status, style=f"bold {palette.rejected}")
        return line


class KeyBar(ActionBar):
    """The keys of the screen and of the app, as many as there is room for; a click works like the key."""

    def __init__(self, screen: str) -> None:
        super().__init__()
        own = [key for key in keys_of(screen) if key.footer] if screen else []
        everywhere = [key for key in keys_of("") if key.footer]
        self._keys = [*own, *(key for key in everywhere if key.key not in _ALWAYS)]
        self._always = [key for key in everywhere if key.key in _ALWAYS]

    def render(self) -> Text:
        app = cast("DashboardApp", self.app)
        unicode = app.abilities.unicode
        right = self._words(self._always, unicode)
        room = self.size.width - right.cell_len
        left = Text()
        for words in merged(self._keys, unicode):
            if left.cell_len + words.cell_len + 2 * len(_GAP) > room:
                break
            left.append_text(self._styled(words)).append(_GAP)
        gap = max(0, room - left.cell_len)
        line = left.append(" " * gap).append_text(right)
        line.no_wrap, line.overflow = True, "crop"
        return line

    def _words(self, keys: Sequence[Key], unicode: bool) -> Text:
        line = Text()
        for words in merged(keys, unicode):
            line.append(_GAP if line else "").append_text(self._styled(words))
        return line

    def _styled(self, words: Text) -> Text:
        palette = cast("DashboardApp", self.app).palette
        styled = Text().append_text(words)
        styled.stylize(palette.muted)
        styled.stylize(f"bold {palette.chosen}", 0, words.plain.index(" "))
        return styled


def merged(keys: Sequence[Key], unicode: bool) -> list[Text]:
    """`key label` of each, for a footer; keys of one label that follow each other share it (`←→ step`)."""
    groups: list[list[Key]] = []
    for key in keys:
        if groups and groups[-1][0].label == key.label:
            groups[-1].append(key)
        else:
            groups.append([key])
    found = []
    for group in groups:
        text = Text()
        for key in group:
            text.append(key_name(key.key, unicode), _action(namespaced(key)))
        text.append(f" {group[0].label}", _action(namespaced(group[-1])))
        found.append(text)
    return found
