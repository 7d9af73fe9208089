"""What a run's event log says, folded into one object that the screens read.

A pure function of the log: the same events give the same state, however they are cut into batches. What a
resume made void (steps after the checkpoint it went on from) is dropped as it is read.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, takewhile
from typing import Any, Final

from localdpo.dashboard.series import Series
from localdpo.records.control import Acknowledgement, acknowledgement_of
from localdpo.records.events import Event
from localdpo.records.metrics import ACCURACY, all_tied, metrics_of
from localdpo.records.progress import Progress, advance, advance_steps
from localdpo.records.rundir import State, state_of

# Lines of the log that are kept for the log view, and step lines of which more would push out all others.
LOG_LINES: Final = 2000
STEP_LINES: Final = 2000
_QUIET: Final = frozenset({"samples", "pairs"})
_NUMBERS: Final = frozenset({float, int})
_MISSING: Final = object()


@dataclass(frozen=True)
class Start:
    """What `run.started` says of the run. None or empty where it does not."""

    model: str = ""
    loss: str = ""
    beta: float | None = None
    device: str = ""
    path: str = ""
    awake: str = ""
    total: int | None = None
    rows: Mapping[str, int] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    memory_limit_gb: float | None = None
    time: float | None = None

    @property
    def is_on_cpu(self) -> bool:
        """Whether it trains on the CPU; a device is said with its library: `cpu (libopenblas.so.0)`."""
        return self.device.split(" ")[0] == "cpu"


@dataclass(frozen=True)
class Notice:
    """A notice of the log, with its explanation and what to try."""

    time: float
    step: int | None
    level: str
    name: str
    message: str
    why: str = ""
    advice: str = ""


@dataclass(frozen=True)
class Sample:
    """The answers to one watched prompt at one evaluation."""

    prompt: str
    reference: str
    policy: str


@dataclass(frozen=True)
class SampleSet:
    """The samples of the evaluation at `step`."""

    step: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class PairsFile:
    """Where the pairs of lowest margin at `step` are, relative to the run's folder."""

    step: int
    path: str


class RunState:
    """The fold. `feed` takes events in the order of the log; the attributes are what they add up to.

    Attributes:
        start: the latest `run.started`.
        progress: phase, step, total, time left.
        train, evals: series by metric name, of steps and of evaluations.
        notices, samples, pairs, checkpoints (steps), acknowledgements: in the order of the log.
        ended: the last event, if it ended the run (finished, stopped, failed, crashed).
        last_time: Unix time of the last event, None before the first.
        damage: a line about what is damaged in the log, None where nothing is.
        count: events read.
        version: grows with every batch that brought something.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.start = Start()
        self.progress = Progress()
        self.train: dict[str, Series] = {}
        self.evals: dict[str, Series] = {}
        self.notices: list[Notice] = []
        self.samples: list[SampleSet] = []
        self.pairs: list[PairsFile] = []
        self.checkpoints: list[int] = []
        self.acknowledgements: list[Acknowledgement] = []
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

    def state(self, running: bool) -> State:
        """The run's state; `running`: whether its lock is held."""
        return state_of(self._milestones, running)

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
        if event.type.startswith("run."):
            self._milestones.append(event)
        if event.type not in _QUIET:
            self._log.append((self.count, event))
        take = _TAKES.get(event.type)
        if take is not None:
            take(self, event)

    def _started(self, event: Event) -> None:
        self.start, self.ended = _start_of(event), None

    def _resumed(self, event: Event) -> None:
        self.ended = None
        if event.step is None:
            return
        for series in (*self.train.values(), *self.evals.values()):
            series.truncate(event.step)
        self.samples = [entry for entry in self.samples if entry.step <= event.step]
        self.pairs = [entry for entry in self.pairs if entry.step <= event.step]
        self.checkpoints = [step for step in self.checkpoints if step <= event.step]

    def _evaluated(self, event: Event) -> None:
        _extend(self.evals, [event])

    def _sampled(self, event: Event) -> None:
        found = event.data.get("samples")
        if event.step is not None and isinstance(found, list):
            samples = tuple(_sample_of(entry) for entry in found if isinstance(entry, Mapping))
            self.samples.append(SampleSet(event.step, samples))

    def _paired(self, event: Event) -> None:
        path = event.data.get("path")
        if event.step is not None and isinstance(path, str):
            self.pairs.append(PairsFile(event.step, path))

    def _saved(self, event: Event) -> None:
        if event.step is not None:
            self.checkpoints.append(event.step)

    def _noticed(self, event: Event) -> None:
        keys = ("level", "name", "message", "why", "try")
        self.notices.append(Notice(event.time, event.step, *(str(event.data.get(key, "")) for key in keys)))

    def _answered(self, event: Event) -> None:
        self.acknowledgements.append(acknowledgement_of(event))

    def _ended(self, event: Event) -> None:
        self.ended = event


_TAKES: Final = {
    "run.started": RunState._started,
    "run.resumed": RunState._resumed,
    "eval": RunState._evaluated,
    "samples": RunState._sampled,
    "pairs": RunState._paired,
    "checkpoint": RunState._saved,
    "notice": RunState._noticed,
    "control": RunState._answered,
    "run.finished": RunState._ended,
    "run.stopped": RunState._ended,
    "run.failed": RunState._ended,
    "run.crashed": RunState._ended,
}


def _extend(table: dict[str, Series], events: list[Event]) -> None:
    """Add the metrics of `events` to their series, metric by metric; what is no number is left out."""
    events = [event for event in events if event.step is not None]
    steps = [event.step for event in events if event.step is not None]
    rows = [metrics_of(event) for event in events]
    for name in dict.fromkeys(chain.from_iterable(rows)):
        values = [row.get(name, _MISSING) for row in rows]
        if set(map(type, values)) <= _NUMBERS:
            table.setdefault(name, Series()).extend(steps, values)
            continue
        if name == ACCURACY:  # nothing was ranked, which is no value that was not finite
            values = [_MISSING if all_tied(row) else v for v, row in zip(values, rows, strict=True)]
        points = [(s, v) for s, v in zip(steps, values, strict=True) if v is None or type(v) in _NUMBERS]
        if points:
            table.setdefault(name, Series()).extend(*zip(*points, strict=True))


def _start_of(event: Event) -> Start:
    data = event.data
    recipe = data.get("recipe")
    recipe = recipe if isinstance(recipe, Mapping) else {}
    loss = recipe.get("loss")
    beta = loss.get("beta") if isinstance(loss, Mapping) else None
    rows = data.get("rows")
    total = data.get("total_steps")
    limit = data.get("memory_limit_gb")
    return Start(
        **{key: str(data.get(key, "")) for key in ("model", "loss", "device", "path", "awake")},
        beta=float(beta) if isinstance(beta, int | float) else None,
        total=total if isinstance(total, int) else None,
        rows=rows if isinstance(rows, Mapping) else {},
        recipe=recipe,
        memory_limit_gb=float(limit) if isinstance(limit, int | float) else None,
        time=event.time,
    )


def _sample_of(entry: Mapping[str, Any]) -> Sample:
    return Sample(*(str(entry.get(key, "")) for key in ("prompt", "reference", "policy")))
