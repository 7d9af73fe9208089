"""A run in one line of a table, from its log and its evaluations; the columns of the table; kinds of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any, Final

from localdpo.core.text import age
from localdpo.records.checkpoints import Note, damage_of
from localdpo.records.deaths import end_lines
from localdpo.records.evaluations import judged_rate
from localdpo.records.events import Event, EventTail, as_number, effective
from localdpo.records.metrics import ACCURACY, BY_NAME, all_tied, metric_of, metrics_of
from localdpo.records.progress import Phase, Progress, advance
from localdpo.records.rundir import RunDir, State, is_end, state_of


@dataclass(frozen=True)
class RunKind:
    """A kind of run by the rows that it trains on, and what is shown for it.

    Which metrics a run has says itself: charts and tiles are those of which its log has values.

    Attributes:
        rows: what it trains on, for people.
        has_beta: whether its rewards are compared with a reference, so that beta means something.
        has_pairs: whether an evaluation writes the pairs of lowest margin.
        before: what the model that it is compared with is called.
    """

    rows: str
    has_beta: bool = True
    has_pairs: bool = False
    before: str = "reference"


KINDS: Final = {
    "pairs": RunKind("pairs", has_pairs=True),
    "unpaired": RunKind("single answers with a label"),
    "demonstrations": RunKind("demonstrations", has_beta=False, before="before training"),
}


# The losses that do not train on pairs, for logs from before the event named the kind.
_BY_LOSS: Final = {"sft": "demonstrations", "kto": "unpaired", "apo_zero_unpaired": "unpaired"}


def kind_of(start: Event | None) -> RunKind:
    """The kind of run that a run.started event begins; old logs tell it by their loss alone."""
    if start is None:
        return KINDS["pairs"]
    kind = start.text("kind") or _BY_LOSS.get(str(start.recipe_section("loss").get("type")))
    return KINDS.get(kind or "", KINDS["pairs"])


@dataclass(frozen=True)
class RunSummary:
    """One run. None where the log does not say. Times are Unix seconds, memory is in GB.

    Accuracy, margin and KL (nats per token) are those of the last evaluation; `win` is the share of
    comparisons won (ties half) in the newest evaluation that was judged. `started` is the time of the first
    event, `launched` that of the latest worker's start; `ended` is what the log says of the run's end, empty
    for one that trains or has finished. `within` is the name of the series that the run is in.
    """

    run: RunDir
    state: State
    phase: Phase
    loss: str | None = None
    beta: float | None = None
    model: str | None = None
    step: int = 0
    total: int | None = None
    accuracy: float | None = None
    all_tied: bool = False
    margin: float | None = None
    kl: float | None = None
    win: float | None = None
    memory: float | None = None
    started: float | None = None
    launched: float | None = None
    updated: float | None = None
    ended: tuple[str, ...] = ()
    within: str | None = None

    @property
    def name(self) -> str:
        """The run's name, with that of the series that it is in."""
        return self.run.name if self.within is None else f"{self.within}/{self.run.name}"

    @property
    def why(self) -> str | None:
        """What the log says of a run that failed or crashed, in one line."""
        return "; ".join(self.ended) or None if self.state in ("failed", "crashed") else None

    @property
    def steps(self) -> str:
        """`40/60`, or `40` where the total is not known."""
        return str(self.step) if self.total is None else f"{self.step}/{self.total}"

    @property
    def ranked(self) -> str:
        """The accuracy, or that all pairs are tied."""
        return "tied" if self.all_tied else _number(self.accuracy)

    @property
    def short_model(self) -> str:
        """The last part of the model's name or path."""
        return (self.model or "").rstrip("/").rsplit("/", 1)[-1]

    def to_json(self) -> dict[str, Any]:
        """The summary as a JSON object."""
        names = [field.name for field in fields(self) if field.name not in ("run", "ended", "within")]
        return {"name": self.name, **{name: getattr(self, name) for name in names}, "why": self.why}


def beta_of(start: Event | None) -> float | None:
    """The beta of a run from its run.started event; None for a kind of run that has none."""
    if start is None or not kind_of(start).has_beta:
        return None
    return as_number(start.recipe_section("loss").get("beta"))


class RunReader:
    """Adds up the events of a run, in the order of its log. Steps are not kept: a table has many runs.

    Attributes:
        summary: as of the last `refresh`.
        evaluations: the eval events that count.
    """

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self.evaluations: list[Event] = []
        self._tail = EventTail(run.events)
        self._progress = Progress()
        self._started: float | None = None
        self._milestones: list[Event] = []
        self._memory: float | None = None
        self.summary = self.take((), running=False)

    def refresh(self) -> None:
        """Read only what the log has gained."""
        # The lock before the log: a run that ends in between is shown as running, never as crashed.
        running = self.run.is_running()
        self.summary = self.take(self._tail.poll(), running)

    def damage(self) -> str | None:
        """One line about what is missing in the log, None where nothing is."""
        return damage_of(self.run, self._tail, alive=self.summary.state == "running")

    def take(self, events: Iterable[Event], running: bool) -> RunSummary:
        """The line of the run after these events, too; `running`: whether its lock is held."""
        for event in events:
            self._progress = advance(self._progress, event)
            if self._started is None:
                self._started = event.time
            if event.type == "step":
                memory = metric_of(event, "memory_gb")
                self._memory = self._memory if memory is None else memory
            elif event.type == "eval":
                self.evaluations.append(event)
            elif event.type.startswith("run."):
                self._milestones.append(event)
                self.evaluations = effective([*self.evaluations, event])[:-1]
        starts = [event for event in self._milestones if event.type == "run.started"]
        start = starts[-1] if starts else None
        end = self._milestones[-1] if self._milestones and is_end(self._milestones[-1]) else None
        last = self.evaluations[-1] if self.evaluations else None
        win = judged_rate(self.run)
        return RunSummary(
            run=self.run,
            state=state_of(self._milestones, running),
            phase=self._progress.phase,
            loss=start.text("loss") if start else None,
            beta=beta_of(start),
            model=start.text("model") if start else None,
            step=self._progress.step,
            total=self._progress.total,
            accuracy=metric_of(last, ACCURACY),
            all_tied=all_tied(metrics_of(last)),
            margin=metric_of(last, "rewards/margins"),
            kl=metric_of(last, "kl"),
            win=None if win is None else win.value,
            memory=self._memory,
            started=self._started,
            launched=start.time if start else None,
            updated=self._progress.updated,
            ended=() if running else tuple(end_lines(end)),
        )


def summarise(run: RunDir, events: Iterable[Event], running: bool) -> RunSummary:
    """The line of a run whose events were read already."""
    return RunReader(run).take(events, running)


def read_summaries(runs: Iterable[RunDir], note: Note) -> list[RunSummary]:
    """The summary of each run; `note` gets a line for each damaged log.

    A run whose log may not be read is left out; the line says so.
    """
    summaries = []
    for reader in map(RunReader, runs):
        try:
            reader.refresh()
        except OSError as error:
            note(f"{reader.run.events}: cannot be read ({error.strerror}); the run is left out")
            continue
        if (damage := reader.damage()) is not None:
            note(damage)
        summaries.append(reader.summary)
    return summaries


@dataclass(frozen=True)
class RunColumn:
    """A column of a table of runs.

    Attributes:
        title: heading.
        text: the cell at a Unix time, "" where nothing is known.
        value: what the table is sorted by, None for an unknown one.
        is_text: whether it is text, which is aligned left and sorted from A to Z.
        lowest_first: whether the lowest number comes first.
    """

    title: str
    text: Callable[[RunSummary, float], str]
    value: Callable[[RunSummary], float | str | None]
    is_text: bool = False
    lowest_first: bool = False


def _number(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)


def _age(time: float | None, now: float) -> str:
    return "" if time is None else age(now - time)


_KL: Final = BY_NAME["kl"]
_COLUMNS: Final = (
    RunColumn("name", lambda run, now: run.name, lambda run: run.name, is_text=True),
    RunColumn("state", lambda run, now: run.state, lambda run: run.state, is_text=True),
    RunColumn("model", lambda run, now: run.model or "", lambda run: run.short_model, is_text=True),
    RunColumn("loss", lambda run, now: run.loss or "", lambda run: run.loss, is_text=True),
    RunColumn("beta", lambda run, now: _number(run.beta, "g"), lambda run: run.beta),
    RunColumn("step", lambda run, now: run.steps, lambda run: run.step),
    RunColumn("accuracy", lambda run, now: run.ranked, lambda run: run.accuracy),
    RunColumn("margin", lambda run, now: _number(run.margin), lambda run: run.margin),
    RunColumn("kl", lambda run, now: _number(run.kl), lambda run: run.kl, lowest_first=_KL.better == "lower"),
    RunColumn("win", lambda run, now: _number(run.win, ".0%"), lambda run: run.win),
    RunColumn("memory", lambda run, now: _number(run.memory, ".3g"), lambda run: run.memory),
    RunColumn("started", lambda run, now: _age(run.launched, now), lambda run: run.launched or run.updated),
    RunColumn("when", lambda run, now: _age(run.updated, now), lambda run: run.updated),
)
RUN_COLUMNS: Final = {column.title: column for column in _COLUMNS}
