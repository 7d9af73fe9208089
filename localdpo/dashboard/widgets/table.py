"""A table whose rows are chosen with up and down; every other key is the screen's."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import DataTable


class ListTable(DataTable[Any], inherit_bindings=False):
    """Textual's table without its keys but the two arrows, so that the table of keys holds for the screen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "cursor_up", show=False),
        Binding("down", "cursor_down", show=False),
    ]
