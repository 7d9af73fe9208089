"""The help screen: every key, from the table of keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from rich.table import Table
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Static

from localdpo.dashboard.keymap import SCREEN_TITLES, key_name, keys_of
from localdpo.out.console import Text

if TYPE_CHECKING:
    from localdpo.dashboard.app import DashboardApp


class HelpScreen(ModalScreen[None]):
    """All keys, those of the screen it was opened from first. `?`, `q` and escape close it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,q", "dismiss", show=False),
    ]

    def __init__(self, screen: str) -> None:
        super().__init__()
        self._screen = screen

    def compose(self) -> ComposeResult:
        with Vertical(id="help"):
            with VerticalScroll(id="keys"):
                for name in [self._screen, "", *(name for name in SCREEN_TITLES if name != self._screen)]:
                    if keys_of(name):
                        yield Static(self._table(name), classes="keys")
            yield Static("esc closes this   arrows scroll   : all commands by name", id="hint")

    def on_mount(self) -> None:
        self.query_one("#help").border_title = "keys"
        self.query_one("#keys").focus()

    def _table(self, name: str) -> Table:
        app = cast("DashboardApp", self.app)
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=6, no_wrap=True)
        table.add_column()
        here = " (this screen)" if name == self._screen else ""
        title = SCREEN_TITLES[name] + here if name else "Everywhere"
        table.add_row("", Text(title, style=f"bold {app.palette.rejected}"))
        for key in keys_of(name):
            table.add_row(
                Text(key_name(key.key, app.abilities.unicode), style=f"bold {app.palette.chosen}"),
                Text(key.help),
            )
        return table
