"""Notices: those that the viewer adds to the log's, and the line that shows the most severe one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from textual.widget import Widget

from localdpo.core.text import format_seconds, printable
from localdpo.dashboard.appbase import TerminalApp, app_of
from localdpo.dashboard.picture import fitted
from localdpo.dashboard.state import RunState
from localdpo.out.console import Text
from localdpo.records.events import Notice
from localdpo.records.progress import silent_for

_SEVERITY: Final = {"info": 0, "warning": 1, "critical": 2}
_COLOURS: Final = {"info": "chosen", "warning": "rejected", "critical": "critical"}
_WORDS: Final = {"info": "notice"}
_WIDE: Final = 70  # columns from which the keys have their words

NoticeKey = tuple[str, str]


def notice_key(notice: Notice) -> NoticeKey:
    """(name, level): acknowledging a notice covers its repetitions, but not one at a higher level.

    Notes have one name for all: of them it is the message.
    """
    return notice.message if notice.name == "note" else notice.name, notice.level


def distinct(notices: Iterable[Notice]) -> list[Notice]:
    """The notices, of those that say the same the newest: a resumed run says again what it said at first."""
    return list({(notice.name, notice.level, notice.message): notice for notice in notices}.values())


def unacknowledged(notices: Iterable[Notice], acknowledged: set[NoticeKey]) -> list[Notice]:
    """The notices that were not acknowledged, the most severe first, of equals the newest."""
    pending = [notice for notice in notices if notice_key(notice) not in acknowledged]
    return sorted(pending, key=lambda notice: (-_SEVERITY.get(notice.level, 0), -notice.time))


def notice_text(notice: Notice, app: TerminalApp) -> Text:
    """All that a notice says, for a dialog."""
    text = _head(notice, app).append(printable(notice.name), app.palette.muted)
    for label, words in (("", notice.message), ("why   ", notice.why), ("try   ", notice.advice)):
        if words:
            text.append("\n").append(label, f"bold {app.palette.muted}")
            text.append(printable(words), app.palette.ink)
    return text


def _head(notice: Notice, app: TerminalApp) -> Text:
    mark = app.abilities.mark(_WORDS.get(notice.level, notice.level if notice.level in _SEVERITY else "info"))
    when = time.strftime("%H:%M", time.localtime(notice.time))
    at = "" if notice.step is None else f" step {notice.step:,}"
    word = _WORDS.get(notice.level, notice.level).upper()
    colour = getattr(app.palette, _COLOURS.get(notice.level, "ink"))
    return Text().append(f"{mark} {when}{at} {printable(word)} ", f"bold {colour}")


class NoticeLine(Widget):
    """The most severe notice that was not acknowledged: its message and, in a second row, what it means."""

    DEFAULT_CSS = "NoticeLine { height: 1; width: 1fr; padding: 0 1; display: none; }"

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._pending: list[Notice] = []
        self._total = 0
        self._acknowledged: set[NoticeKey] = set()

    def show(self, notices: Sequence[Notice]) -> None:
        """Show the first of `notices` that was not acknowledged."""
        # The line on how the run ended shows a crash already.
        rest = unacknowledged(notices, self._acknowledged)
        pending = [notice for notice in rest if notice.name != "crashed"]
        if (pending, len(notices)) != (self._pending, self._total):
            self._pending, self._total = pending, len(notices)
            self.display = bool(pending)
            self.refresh()

    def acknowledge(self) -> None:
        """Take note of the notice that is shown."""
        self._acknowledged |= {notice_key(notice) for notice in self._pending[:1]}

    def clear(self) -> None:
        """Forget what was acknowledged: another run follows."""
        self._acknowledged = set()

    def render(self) -> Text:
        if not self._pending:
            return Text()
        app, notice = app_of(self), self._pending[0]
        ellipsis = app.abilities.ellipsis
        is_wide = self.size.width >= _WIDE
        keys = f"  a acknowledge  A all ({self._total})" if is_wide else f"  a  A({self._total})"
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


def alarms(state: RunState, alive: bool, now: float) -> list[Notice]:
    """The viewer's own notices at the Unix time `now`: damage, silence, a crash.

    `alive`: whether a worker holds the run's lock.
    """
    found: list[Notice] = []
    at, step = state.last_time if state.last_time is not None else now, state.progress.step
    if state.damage is not None:
        why = (
            "The content of those lines is missing on all screens: another program wrote into the log, or "
            "the disk was full or is failing."
        )
        advice = "The checkpoints have checksums of their own and are not affected."
        found.append(Notice(at, None, "warning", "damaged-log", state.damage, why, advice))
    if alive and (quiet := silent_for(state.progress, now)) is not None:
        message = f"No event from the worker for {format_seconds(quiet)}, though its process is alive"
        why = "A step takes much longer than those before, the machine slept, or the worker hangs."
        advice = "Look at worker.log in the run's folder and at the machine's memory; x stops the run."
        found.append(Notice(at, step, "warning", "silence", message, why, advice))
    if not alive and state.state(False) == "crashed":
        logged = state.ended.data.get("lines") if state.ended is not None else None
        lines = [str(line) for line in logged] if isinstance(logged, list) else []
        message = f"The worker exited; exit status unknown; its last step was {step}"
        why = "The process ended without a message: a signal, the system out of memory, a failed driver."
        advice = "; ".join(lines[1:]) or "Resume the run: it continues from its last checkpoint."
        found.append(Notice(at, step, "critical", "crashed", lines[0] if lines else message, why, advice))
    return found
