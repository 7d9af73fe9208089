"""From the events of a run to the rows that a tracker is shown, while it trains or when it has ended.

A row holds all that was measured at a step, and goes out when the next step has begun. A step counts once:
what the tracker has of a run already is not sent again, so that a run may be shown again after a failure,
and resumed, without a point that is there twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from localdpo.core.text import is_number
from localdpo.records.events import Event, samples_of
from localdpo.records.metrics import in_order, metrics_of
from localdpo.records.rundir import Ending, RunDir
from localdpo.trackers.registry import EVAL, Row, TrackedRun, Tracker

# Rows in one call of a tracker, so that a call has an end on a slow network too.
MOST_ROWS: Final = 100
_ID_DIGITS: Final = 10


class Reporter:
    """Shows one run to one tracker, which is opened when the log says that the run has started.

    Attributes:
        tracker: None until it is opened.
        sent: rows that it was shown.
    """

    def __init__(self, run: RunDir, open_tracker: Callable[[TrackedRun], Tracker]) -> None:
        self._run, self._open = run, open_tracker
        self._first: Event | None = None
        self._start: Event | None = None
        self._rows: dict[int, Row] = {}
        self._last_step = -1
        self.tracker: Tracker | None = None
        self.sent = 0

    def add(self, events: Iterable[Event]) -> None:
        """Take in the next events of the log, from its first one on, without what a resume made void."""
        for event in events:
            self._first = self._first or event
            if event.type == "run.started":
                self._start = event
            elif event.type in ("step", "eval", "samples") and event.step is not None:
                row = self._rows.setdefault(event.step, Row(event.step, event.time))
                row.metrics |= metrics_to_track(event)
                row.samples += [(one.prompt, one.reference, one.policy) for one in samples_of(event)]

    def send(self, *, over: bool = False) -> bool:
        """Show the tracker the next rows, at most MOST_ROWS; whether more are waiting.

        The row of the latest step waits for more of it, unless the run is `over`.
        """
        if self._first is None or self._start is None:
            return False
        if self.tracker is None:
            # The time of the first event has microseconds.
            made_of = f"{self._first.type} {self._first.time!r} {self._run.recipe.read_text()}"
            digest, recipe = hashlib.sha256(made_of.encode()).hexdigest(), self._start.data.get("recipe")
            options = recipe if isinstance(recipe, Mapping) else {}
            tracked = TrackedRun(
                digest[:_ID_DIGITS], self._run.name, self._run.path, options, self._first.time
            )
            self.tracker = self._open(tracked)
            self._last_step = self.tracker.last_step
        latest = max(self._rows, default=0)
        steps = sorted(step for step in self._rows if over or step < latest)
        rows = [self._rows.pop(step) for step in steps[:MOST_ROWS]]
        if new := [row for row in rows if row.step > self._last_step]:
            self.tracker.log(new)
            self._last_step = new[-1].step
            self.sent += len(new)
        return len(steps) > MOST_ROWS

    def finish(self, ending: Ending) -> None:
        """Let the tracker write what is left. Nothing happens if it was never opened."""
        if self.tracker is not None:
            self.tracker.finish(ending)


def metrics_to_track(event: Event) -> dict[str, float]:
    """The metrics of a step or an evaluation that are numbers, by the names of a Row, in the usual order."""
    prefix = EVAL if event.type == "eval" else ""
    metrics = in_order(metrics_of(event))
    return {f"{prefix}{name}": float(value) for name, value in metrics.items() if is_number(value)}
