"""Notices: the most pressing one in a line or two, and a box with all of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar, Final, cast

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Static

from localdpo.core.text import printable
from localdpo.dashboard.picture import fitted
from localdpo.dashboard.state import Notice
from localdpo.out.console import Text

if TYPE_CHECKING:
    from localdpo.dashboard.app import DashboardApp

_SEVERITY: Final = {"info": 0, "warning": 1, "critical": 2}
_COLOURS: Final = {"info": "chosen", "warning": "rejected", "critical": "critical"}
_WORDS: Final = {"info": "notice"}
_WIDE: Final = 70  # columns from which the keys have their words
_MARKS: Final = {"info": "notice"}

# What makes two notices the same for whoever has read one: it may come again at a higher level.
Known = tuple[str, str]


def known(notice: Notice) -> Known:
    """What is remembered of a notice that was acknowledged."""
    return notice.name, notice.level


def pressing(notices: Iterable[Notice], read: set[Known]) -> list[Notice]:
    """The notices that were not acknowledged, the gravest first, of equals the newest."""
    open_ones = [notice for notice in notices if known(notice) not in read]
    return sorted(open_ones, key=lambda notice: (-_SEVERITY.get(notice.level, 0), -notice.time))


def _head(notice: Notice, app: DashboardApp) -> Text:
    mark = app.abilities.mark(_MARKS.get(notice.level, notice.level if notice.level in _SEVERITY else "info"))
    when = time.strftime("%H:%M", time.localtime(notice.time))
    at = "" if notice.step is None else f" step {notice.step:,}"
    word = _WORDS.get(notice.level, notice.level).upper()
    colour = getattr(app.palette, _COLOURS.get(notice.level, "ink"))
    return Text().append(f"{mark} {when}{at} {printable(word)} ", f"bold {colour}")


class NoticeLine(Widget):
    """The gravest notice that nobody acknowledged: what was seen and, in a second row, what it means."""

    DEFAULT_CSS = "NoticeLine { height: 1; width: 1fr; padding: 0 1; display: none; }"

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._notices: Sequence[Notice] = ()
        self._total = 0

    @property
    def first(self) -> Notice | None:
        """The notice that is shown."""
        return self._notices[0] if self._notices else None

    def show(self, notices: Sequence[Notice], total: int) -> None:
        """Show the first of `notices`, those that are open; `total`: how many there are with the others."""
        if (list(notices), total) == (list(self._notices), self._total):
            return
        self._notices, self._total = notices, total
        self.display = bool(notices)
        self.refresh()

    def render(self) -> Text:
        app = cast("DashboardApp", self.app)
        notice = self.first
        if notice is None:
            return Text()
        ellipsis = "…" if app.abilities.unicode else "~"
        keys = (
            f"  a acknowledge  A all ({self._total})"
            if self.size.width >= _WIDE
            else f"  a  A({self._total})"
        )
        head = _head(notice, app)
        message = fitted(printable(notice.message), self.size.width - head.cell_len - len(keys), ellipsis)
        head.append(message, app.palette.ink)
        head.append(" " * (self.size.width - head.cell_len - len(keys)))
        head.append(keys, app.palette.muted)
        head.no_wrap = True
        if self.size.height > 1:
            why = fitted(f"  {printable(notice.why)}", self.size.width, ellipsis)
            head.append("\n").append(why, app.palette.muted)
        return head


class NoticesScreen(ModalScreen[None]):
    """All notices of the run, the newest first, with what each means and what to try."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q,A", "dismiss", show=False),
        Binding("up,k", "scroll(-1)", show=False),
        Binding("down,j", "scroll(1)", show=False),
        Binding("pageup", "scroll(-10)", show=False),
        Binding("pagedown,space", "scroll(10)", show=False),
    ]
    DEFAULT_CSS = """
    NoticesScreen { align: center middle; background: $background 60%; }
    NoticesScreen > Vertical {
        width: 100; max-width: 96%; height: auto; max-height: 96%;
        border: round $rejected; background: $surface; padding: 0 2;
    }
    NoticesScreen VerticalScroll { height: auto; max-height: 1fr; }
    NoticesScreen .entry { height: auto; margin-bottom: 1; }
    """

    def __init__(self, notices: Sequence[Notice]) -> None:
        super().__init__()
        self._notices = sorted(notices, key=lambda notice: notice.time, reverse=True)

    def compose(self) -> ComposeResult:
        app = cast("DashboardApp", self.app)
        with Vertical() as box:
            box.border_title = f"notices ({len(self._notices)})"
            box.border_subtitle = "esc closes"
            with VerticalScroll():
                if not self._notices:
                    yield Static("Nothing to tell: no notice so far.", classes="entry")
                for notice in self._notices:
                    yield Static(_entry(notice, app), classes="entry")

    def action_scroll(self, rows: int) -> None:
        """Scroll the box by rows."""
        self.query_one(VerticalScroll).scroll_relative(y=rows, animate=False)


def _entry(notice: Notice, app: DashboardApp) -> Text:
    text = _head(notice, app).append(printable(notice.name), app.palette.muted)
    for label, said in (("", notice.message), ("why   ", notice.why), ("try   ", notice.advice)):
        if said:
            text.append("\n").append(label, f"bold {app.palette.muted}").append(
                printable(said), app.palette.ink
            )
    return text
