"""`localdpo prefs label` on a terminal: an app with the one screen of pairs to label."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import ClassVar, Final

from textual.app import App
from textual.binding import Binding, BindingType
from textual.filter import LineFilter

from localdpo.dashboard.screens.label import LabelScreen, LabelState
from localdpo.dashboard.terminal import Abilities, abilities_of, line_filters
from localdpo.dashboard.themes import THEME_NAMES, theme_of

_FEW_COLOURS: Final = 16


class LabelApp(App[None]):
    """The app. `labelling.failure` says after `run` why a key could not be kept, None if all were."""

    TITLE = "localdpo"
    CSS_PATH = "styles/app.tcss"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c", "quit", show=False, system=True)]

    def __init__(self, state: LabelState, environment: Mapping[str, str] = os.environ) -> None:
        self.abilities: Abilities = abilities_of(environment)
        super().__init__()
        for name in THEME_NAMES:
            self.register_theme(theme_of(name))
        has_few = self.abilities.colour and self.abilities.colours <= _FEW_COLOURS
        self.theme = "16" if has_few else "dark"
        self.labelling = LabelScreen(state)

    def get_line_filters(self) -> list[LineFilter]:
        return line_filters(super().get_line_filters(), self.abilities)

    def on_mount(self) -> None:
        self.push_screen(self.labelling)
