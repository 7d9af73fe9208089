"""The runs of a folder as lines of a table, read again only where something changed.

A run's log is read on from where it was left; 100 runs that stand still cost a few system calls each.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from localdpo.dashboard.state import RunState, Start
from localdpo.records.deaths import end_lines
from localdpo.records.evaluations import win_rate
from localdpo.records.events import Event, EventTail
from localdpo.records.metrics import ACCURACY, all_tied, metric_of, metrics_of
from localdpo.records.progress import Progress, advance
from localdpo.records.rundir import RunDir, State, list_runs

# Seconds that one refresh may take; what is left is read by the next.
BUDGET: Final = 0.03


@dataclass(frozen=True)
class RunLine:
    """A run in the table. None: the log does not say. Times are Unix seconds, memory is in GB.

    Accuracy, margin and KL (nats per token) are those of the last evaluation; `win` is the share of
    comparisons won (ties half) of the newest evaluation that was judged; `ended` is what the log says of the
    run's end, empty for one that trains or has finished.
    """

    run: RunDir
    state: State
    phase: str
    start: Start
    step: int
    total: int | None
    accuracy: float | None
    all_tied: bool
    margin: float | None
    kl: float | None
    win: float | None
    memory: float | None
    updated: float | None
    ended: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.run.name


class _Reader:
    """What one run's log has said so far, without its series."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self._tail = EventTail(run.events)
        self._stamp: object = None
        # Fed with the events of the run's life only: 100 runs' series would be too much to keep.
        self._life = RunState(run.name)
        self._last_eval: Event | None = None
        self._progress = Progress()
        self._memory: float | None = None
        self._updated: float | None = None
        self.line = self._line(False)

    def refresh(self) -> bool:
        """Read what is new; whether the line changed."""
        # The lock before the log: a run that ends in between is shown as running, never as crashed.
        running = self.run.is_running()
        stamp = _stamp(self.run)
        if stamp != self._stamp:
            self._stamp = stamp
            for event in self._tail.poll():
                self._take(event)
        line = self._line(running)
        changed, self.line = line != self.line, line
        return changed

    def _take(self, event: Event) -> None:
        self._updated = event.time
        self._progress = advance(self._progress, event)
        if event.type == "step":
            memory = metric_of(event, "memory_gb")
            self._memory = self._memory if memory is None else memory
        elif event.type == "eval":
            self._last_eval = event
        elif event.type.startswith("run."):
            self._life.feed([event])

    def _line(self, running: bool) -> RunLine:
        last = self._last_eval
        return RunLine(
            run=self.run,
            state=self._life.state(running),
            phase=self._progress.phase,
            start=self._life.start,
            step=self._progress.step,
            total=self._progress.total,
            accuracy=metric_of(last, ACCURACY),
            all_tied=all_tied(metrics_of(last)),
            margin=metric_of(last, "rewards/margins"),
            kl=metric_of(last, "kl"),
            win=win_rate(self.run),
            memory=self._memory,
            updated=self._updated,
            ended=() if running else tuple(end_lines(self._life.ended)),
        )


class RunIndex:
    """The lines of all runs in `runs_dir`; `refresh` keeps them up to date."""

    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir
        self._readers: dict[str, _Reader] = {}
        self._due: list[str] = []

    @property
    def is_reading(self) -> bool:
        """Whether the last refresh left runs for the next."""
        return bool(self._due)

    @property
    def lines(self) -> list[RunLine]:
        """The most recently active first."""
        lines = [reader.line for reader in self._readers.values()]
        return sorted(lines, key=lambda line: (-(line.updated or 0.0), line.name))

    def refresh(self, budget: float = BUDGET) -> bool:
        """Look at as many runs as `budget` seconds allow, all in turn; whether a line changed."""
        deadline = time.monotonic() + budget
        changed = False
        if not self._due:
            changed = self._list()
        while self._due and time.monotonic() < deadline:
            changed = self._readers[self._due.pop(0)].refresh() or changed
        return changed

    def _list(self) -> bool:
        """The runs there are now; those that are gone are dropped. Whether any came or went."""
        runs = {run.name: run for run in list_runs(self._runs_dir)}
        before = self._readers
        self._readers = {name: before.get(name) or _Reader(run) for name, run in runs.items()}
        self._due = list(runs)
        return before.keys() != self._readers.keys()


def _stamp(run: RunDir) -> tuple[int, int] | None:
    try:
        status = run.events.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size
