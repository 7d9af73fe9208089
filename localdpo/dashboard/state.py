"""What a run's event log says, folded into one object that the screens read.

A pure function of the log: the same events give the same state, however they are cut into batches. Steps
that a resume took back (those after its checkpoint) are dropped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, takewhile
from typing import Final

import numpy as np

from localdpo.records.control import Acknowledgement, acknowledgement_of
from localdpo.records.events import Event, Notice, Sample, notice_of, samples_of
from localdpo.records.metrics import ACCURACY, all_tied, metrics_of
from localdpo.records.progress import Progress, advance, advance_steps
from localdpo.records.rundir import State, state_of
from localdpo.records.runs import RunKind, kind_of
from localdpo.records.wording import alert_text

# Lines for the log view: of all events, and of steps, which would push out all others.
LOG_LINES: Final = 2000
STEP_LINES: Final = 2000
NOT_STARTED: Final = Event(v=1, time=0.0, type="run.started")
# What an evaluation brings for a screen of its own, and the option of the recipe that says how much of it.
_BROUGHT: Final = {"samples": "samples", "pairs": "worst_pairs"}
_QUIET: Final = frozenset({"samples", "pairs", "phase"})
_NUMBERS: Final = frozenset({float, int})
_MISSING: Final = object()
# Room for this much more is made at a time, as a share of what there is: a run's series are kept in full.
_SPARE: Final = 1 / 8


class MetricSeries:
    """Points (step, value) in the order of their steps. NaN is a gap: a value that was not finite.

    Attributes:
        version: grows with every change, so that what was drawn from it can be kept until then.
        cuts: how often points were dropped; while it stays, a newer version only has more points.
    """

    __slots__ = ("_count", "_steps", "_values", "cuts", "version")

    def __init__(self) -> None:
        self._steps = np.empty(0, dtype=np.int64)
        self._values = np.empty(0, dtype=np.float64)
        self._count = 0
        self.version = 0
        self.cuts = 0

    def __len__(self) -> int:
        return self._count

    def extend(self, steps: Sequence[int] | np.ndarray, values: Sequence[float | None] | np.ndarray) -> None:
        """Add points, as many steps as values; far cheaper than a call for each."""
        end = self._count + len(steps)
        if end > len(self._steps):
            self._make_room(end + int(end * _SPARE))
        self._steps[self._count : end] = steps
        self._values[self._count : end] = values
        self._count = end
        self.version += 1

    def _make_room(self, size: int) -> None:
        """Move the points to arrays of `size`. Views of the old ones stay as they are."""
        steps, values = self.steps, self.values
        self._steps, self._values = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.float64)
        self._steps[: len(steps)], self._values[: len(values)] = steps, values

    def truncate(self, step: int) -> None:
        """Drop the points after `step`: a resumed run takes those steps again."""
        keep = bisect_right(self.steps, step)
        if keep < self._count:
            self._count = keep
            self._make_room(keep)
            self.version += 1
            self.cuts += 1

    @property
    def steps(self) -> np.ndarray:
        """int64 [n], a view that later points do not change."""
        return _view(self._steps, self._count)

    @property
    def values(self) -> np.ndarray:
        """float64 [n], a view that later points do not change."""
        return _view(self._values, self._count)

    @property
    def last(self) -> float | None:
        """The newest finite value, None if there is none."""
        return next((float(value) for value in self.values[::-1] if np.isfinite(value)), None)

    @property
    def last_step(self) -> int:
        """The step of the newest point, 0 without any."""
        return int(self._steps[self._count - 1]) if self._count else 0


def _view(array: np.ndarray, count: int) -> np.ndarray:
    view = array[:count]
    view.flags.writeable = False
    return view


class RunState:
    """The fold. `feed` takes events in the order of the log; the attributes are what they add up to.

    Attributes:
        start: the latest `run.started`, or NOT_STARTED.
        progress: phase, step, total, time left.
        train, evals: series by metric name, of steps and of evaluations.
        notices, acknowledgements: in the order of the log.
        samples: those of each evaluation.
        pairs: (step, path) of the pairs of lowest margin at an evaluation, relative to the run's folder.
        alerts: what a notification of the desktop says, in the order of the log.
        ended: the last event, if it ended the run (finished, stopped, failed, crashed).
        last_time: Unix time of the last event, None before the first.
        damage: a line about what is damaged in the log, None where nothing is.
        count: events read.
        version: grows with every batch that brought something.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.start = NOT_STARTED
        self.progress = Progress()
        self.train: dict[str, MetricSeries] = {}
        self.evals: dict[str, MetricSeries] = {}
        self.notices: list[Notice] = []
        self.samples: list[list[Sample]] = []
        self.pairs: list[tuple[int, str]] = []
        self.acknowledgements: list[Acknowledgement] = []
        self.alerts: list[str] = []
        self.ended: Event | None = None
        self.last_time: float | None = None
        self.damage: str | None = None
        self.count = 0
        self.version = 0
        self._milestones: list[Event] = []
        self._log: deque[tuple[int, Event]] = deque(maxlen=LOG_LINES)
        self._steps: deque[tuple[int, Event]] = deque(maxlen=STEP_LINES)

    def feed(self, events: Iterable[Event], damage: str | None = None) -> bool:
        """Take in more events; whether there were any. `damage`: what the log's reader says of it by now."""
        before, was_damage, self.damage = self.count, self.damage, damage
        steps: list[Event] = []
        for event in events:
            if event.type == "step":
                steps.append(event)
                continue
            self._take_steps(steps)
            self._take(event)
            steps = []
        self._take_steps(steps)
        if self.count == before and damage == was_damage:
            return False
        self.version += 1
        return True

    @property
    def kind(self) -> RunKind:
        return kind_of(self.start)

    def state(self, running: bool) -> State:
        """The run's state; `running`: whether its lock is held."""
        return state_of(self._milestones, running)

    def why_none(self, what: str) -> str:
        """Why there are no `samples` or no `pairs`, and what brings some."""
        if self.start is NOT_STARTED:
            return f"no {what} yet"
        options, rows = self.start.recipe_section("eval"), self.start.data.get("rows")
        if options.get(_BROUGHT[what]) == 0:
            return f"no {what}: eval.{_BROUGHT[what]} is 0 in the recipe; a new run with more brings some"
        has_prompts = what == "samples" and options.get("prompts") is not None
        if isinstance(rows, Mapping) and rows.get("valid") == 0 and not has_prompts:
            return f"no {what}: no rows are held out; a new run with data.valid brings some"
        if self.progress.step:
            return f"no {what}: no evaluation up to step {self.progress.step:,} brought any"
        return f"no {what} yet: the evaluation at step 0 brings the first"

    def log(self) -> list[Event]:
        """The newest events in order, for the log view; samples and the like, which have no line, are not."""
        return [event for _, event in self.log_since(0)]

    def log_since(self, count: int) -> list[tuple[int, Event]]:
        """(number, event) of `log()` from the event after number `count` on."""
        fresh = [
            entry
            for kept in (self._log, self._steps)
            for entry in takewhile(lambda entry: entry[0] > count, reversed(kept))
        ]
        return sorted(fresh, key=lambda entry: entry[0])

    def _take_steps(self, events: list[Event]) -> None:
        """A stretch of step events at once: nearly all lines of a long log are such."""
        if not events:
            return
        self.progress = advance_steps(self.progress, events)
        self._steps.extend(enumerate(events, start=self.count + 1))
        self.count += len(events)
        self.last_time = events[-1].time
        _extend(self.train, events)

    def _take(self, event: Event) -> None:
        self.count += 1
        self.last_time = event.time
        self.progress = advance(self.progress, event)
        if (alert := alert_text(self.name, event)) is not None:
            self.alerts.append(alert)
        if event.type.startswith("run."):
            self._milestones.append(event)
        if event.type not in _QUIET:
            self._log.append((self.count, event))
        match event.type:
            case "run.started":
                self.start, self.ended = event, None
            case "run.resumed":
                self.ended = None
                if event.step is not None:
                    self._drop_after(event.step)
            case "run.finished" | "run.stopped" | "run.failed" | "run.crashed":
                self.ended = event
            case "eval":
                _extend(self.evals, [event])
            case "samples":
                if samples := samples_of(event):
                    self.samples.append(samples)
            case "pairs":
                path = event.data.get("path")
                if event.step is not None and isinstance(path, str):
                    self.pairs.append((event.step, path))
            case "notice":
                self.notices.append(notice_of(event))
            case "control":
                self.acknowledgements.append(acknowledgement_of(event))

    def _drop_after(self, step: int) -> None:
        """Forget what the log says of later steps: a resumed run takes them again."""
        for series in (*self.train.values(), *self.evals.values()):
            series.truncate(step)
        self.samples = [samples for samples in self.samples if samples[0].step <= step]
        self.pairs = [entry for entry in self.pairs if entry[0] <= step]


def _extend(table: dict[str, MetricSeries], events: list[Event]) -> None:
    """Add the metrics of `events` to their series, metric by metric; skip what is not a number."""
    events = [event for event in events if event.step is not None]
    steps = [event.step for event in events if event.step is not None]
    rows = [metrics_of(event) for event in events]
    for name in dict.fromkeys(chain.from_iterable(rows)):
        values = [row.get(name, _MISSING) for row in rows]
        if set(map(type, values)) <= _NUMBERS:
            table.setdefault(name, MetricSeries()).extend(steps, values)
            continue
        if name == ACCURACY:  # nothing was ranked, which is no value that was not finite
            values = [_MISSING if all_tied(row) else v for v, row in zip(values, rows, strict=True)]
        points = [(s, v) for s, v in zip(steps, values, strict=True) if v is None or type(v) in _NUMBERS]
        if points:
            table.setdefault(name, MetricSeries()).extend(*zip(*points, strict=True))
