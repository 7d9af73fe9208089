"""A worker without a dashboard: its progress as lines or as a bar, Ctrl-C and SIGTERM passed on to it.

What the lines say is worded in records/wording.py.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Final

from localdpo.core.process import SignalPipe, StopRequests
from localdpo.core.text import aligned, format_seconds, printable
from localdpo.launch.processes import Worker
from localdpo.out import notify
from localdpo.records.events import Event
from localdpo.records.progress import Progress, advance
from localdpo.records.wording import PHASES, alert_text, format_event, format_headline

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import ProgressColumn

    from localdpo.out.console import Console

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
_STOP_MESSAGES: Final = (
    "stopping: the worker saves at the end of this step (again: stop at once, unsaved)",
    "stopping at once",
)
# `localdpo train` explains these on stderr once the worker has ended.
_FAILURES: Final = ("run.failed", "run.crashed")


class ProgressView:
    """Shows the events of a run, as a context manager.

    On a terminal: a bar with the phase and the time left, and above it a line for evaluations, notices and
    ends. Into pipes and files: a line for each event, of a reference pass one for each tenth.
    `progress`: where a resumed run was. `alert_as`: the name under which the desktop is notified of the run.
    `name` stands before what is shown of one run of several, whose views share their `bars`.
    """

    def __init__(
        self,
        console: Console,
        progress: Progress,
        alert_as: str | None = None,
        *,
        name: str = "",
        bars: Bars | None = None,
    ) -> None:
        self._console = console
        self._progress = progress
        self._alert_as = alert_as
        self._prefix = f"{name}: " if name else ""
        self._bars = bars or bars_on(console)
        self._is_part = bars is not None
        self._task = self._bars.add_task(f"{self._prefix}starting", total=None, count="", left="")

    def __enter__(self) -> ProgressView:
        if not self._is_part:
            self._bars.start()
        self._update()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._is_part:
            self._bars.remove_task(self._task)
        else:
            self._bars.stop()

    def show(self, event: Event) -> None:
        before, self._progress = self._progress, advance(self._progress, event)
        if self._console.is_terminal:
            line = format_headline(event, self._progress.total)
        elif event.type in ("reference", "phase") and not _tenth_done(before, self._progress):
            line = None
        else:
            progress = self._progress
            line = None if event.type in _FAILURES else format_event(event, progress.total, progress.eta)
        if line is not None:
            self.say(line)
        self._update()
        if self._alert_as is not None and (text := alert_text(self._alert_as, event)) is not None:
            notify(text)

    def say(self, line: str) -> None:
        print_plain(self._console, f"{self._prefix}{line}")

    def _update(self) -> None:
        done, of, left = bar_state(self._progress)
        self._bars.update(
            self._task,
            description=f"{self._prefix}{PHASES[self._progress.phase]}",
            completed=done,
            total=of,
            count=f"{done}/{of}" if of is not None else "",
            left=f"{format_seconds(left)} left" if left is not None else "",
        )


def bars_on(console: Console, *columns: str | ProgressColumn) -> Bars:
    """Bars with `columns` behind them, by default those of runs; nothing is drawn without a terminal."""
    from rich.progress import BarColumn, Progress, TimeElapsedColumn

    shown = columns or ("{task.fields[count]}", TimeElapsedColumn(), "{task.fields[left]}")
    every = ("{task.description}", BarColumn(), *shown)
    return Progress(*every, console=console, transient=True, disable=not console.is_terminal)


def _tenth_done(before: Progress, now: Progress) -> bool:
    """Whether what is counted has come to its next tenth; an event for every batch is too much to read."""
    done, of = before.done if before.phase == now.phase else 0, max(now.of or 0, 1)
    return 10 * now.done // of > 10 * done // of


def print_plain(console: Console, line: str) -> None:
    """Print text as one line: no markup, no wrapping."""
    console.print(printable(line), soft_wrap=True)


def print_table(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Collection[str] = (),
    wrapped: Collection[str] = (),
) -> None:
    """Print rows of cells: a table on a terminal, elsewhere aligned lines with two spaces between columns.

    `right`: headings of the columns that are aligned right; `wrapped`: of those that may take several lines.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    if not console.is_terminal:
        for line in aligned([headings, *rows]):
            print_plain(console, line)
        return
    from rich.table import Table

    from localdpo.out.console import Text

    table = Table()
    for name in headings:
        table.add_column(name, justify="right" if name in right else "left", no_wrap=name not in wrapped)
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def bar_state(progress: Progress) -> tuple[int, int | None, float | None]:
    """What the bar shows: done, total (None: not known yet), seconds left (None: not known yet).

    In a reference pass it counts rows of that pass; the time is that until all such passes are done.
    """
    if progress.phase == "reference":
        return progress.done, progress.of, progress.reference_eta
    if progress.phase in ("evaluating", "sampling") and progress.of:
        return progress.done, progress.of, progress.eta
    return progress.step, progress.total, progress.eta


class Interrupts:
    """While this context lasts, the first signal asks the workers to save and stop, the second to stop now.

    A worker runs in its own session, so the terminal's Ctrl-C does not reach it by itself. A signal that
    comes before `pass_to` is held for the worker. The handler prints nothing (it may interrupt a print);
    `report` does, outside of it.
    """

    def __init__(self) -> None:
        self._workers: list[Worker] = []
        self._signals: SignalPipe | None = None
        self._requests = StopRequests()
        self._reported = 0
        self.by_keyboard = False

    def __enter__(self) -> Interrupts:
        self._signals = SignalPipe(_SIGNALS, self._take)
        self._take()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._signals is not None:
            self._signals.close()

    @property
    def came(self) -> bool:
        """Whether a signal has come."""
        return self._requests.count > 0

    def pass_to(self, worker: Worker) -> None:
        """From now on signals go to `worker`, too; one that came earlier goes at once."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        self._workers.append(worker)
        if self._requests.count > 0:
            worker.interrupt(at_once=self._requests.count > 1)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def report(self, say: Callable[[str], None]) -> None:
        """Say what the signals since the last call do."""
        due = _STOP_MESSAGES[self._reported : self._requests.count]
        self._reported += len(due)
        for line in due:
            say(line)

    def _take(self) -> None:
        if self._signals is None:
            return
        for number in self._signals.read():
            self.by_keyboard = self.by_keyboard or number == signal.SIGINT
            if self._requests.take(number, time.monotonic()):
                for worker in self._workers:
                    worker.interrupt(at_once=self._requests.count > 1)
