"""Progress without a dashboard: one text line an event, or a bar with a line per evaluation on a terminal.

What the lines say is worded in records/wording.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from localdpo.core.text import format_seconds, printable
from localdpo.records.events import Event
from localdpo.records.progress import Progress, advance
from localdpo.records.wording import PHASES, format_event, format_headline

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

    from localdpo.out.console import Console


class View(Protocol):
    """What shows the events of a run; a context manager."""

    def __enter__(self) -> View: ...
    def __exit__(self, *exc: object) -> None: ...
    def show(self, event: Event) -> None: ...
    def say(self, line: str) -> None: ...


def make_view(console: Console, progress: Progress) -> View:
    """The bar when `console` is a terminal, text lines when not. `progress`: what went before (a resume)."""
    return BarView(console, progress) if console.is_terminal else LineView(console, progress)


class LineView:
    """One line of text for each event, for pipes and files."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress

    def __enter__(self) -> LineView:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def show(self, event: Event) -> None:
        self._progress = advance(self._progress, event)
        line = format_event(event, self._progress.total)
        if line is not None:
            self.say(line)

    def say(self, line: str) -> None:
        print_plain(self._console, line)


class BarView:
    """A bar with the phase and the time left; evaluations, notices and ends are lines above it."""

    def __init__(self, console: Console, progress: Progress) -> None:
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as RichProgress

        self._console = console
        self._progress = progress
        self._bar: RichProgress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
        )
        self._task: TaskID = self._bar.add_task("starting", total=None, count="", left="")

    def __enter__(self) -> BarView:
        self._bar.start()
        self._update()
        return self

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()

    def show(self, event: Event) -> None:
        self._progress = advance(self._progress, event)
        line = format_headline(event, self._progress.total)
        if line is not None:
            self.say(line)
        self._update()

    def say(self, line: str) -> None:
        print_plain(self._console, line)

    def _update(self) -> None:
        done, of, left = bar_state(self._progress)
        self._bar.update(
            self._task,
            description=PHASES[self._progress.phase],
            completed=done,
            total=of,
            count=f"{done}/{of}" if of is not None else "",
            left=f"{format_seconds(left)} left" if left is not None else "",
        )


def print_plain(console: Console, line: str) -> None:
    """Print text as one line: no markup, no wrapping."""
    console.print(printable(line), soft_wrap=True)


def bar_state(progress: Progress) -> tuple[int, int | None, float | None]:
    """What the bar shows: done, total (None: not known yet), seconds left (None: not known yet).

    In a reference pass it counts rows of that pass; the time is that until all such passes are done.
    """
    if progress.phase == "reference":
        return progress.done, progress.of, progress.reference_eta
    return progress.step, progress.total, progress.eta
