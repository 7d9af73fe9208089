"""What a run is doing and how long it still takes, as pure functions of its events."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Final, Literal

from localdpo.core.text import counted
from localdpo.records.events import Event
from localdpo.records.metrics import metric_of
from localdpo.records.rundir import ENDS, Ending

Phase = Literal[
    "starting",
    "loading",
    "tokenising",
    "reference",
    "evaluating",
    "sampling",
    "saving",
    "training",
    "paused",
    Ending,
]

# Phases that an event of their own begins, and counts.
_SHOWN: Final = ("loading", "evaluating", "sampling", "saving")
# Steps differ in length with their batch; the median of this many is steady and still follows a change.
_WINDOW: Final = 32
# Seconds without an event that the work of a phase explains at least: a batch, an answer, a checkpoint.
_SILENT_SECONDS: Final[dict[Phase, float]] = {
    "reference": 30.0,
    "evaluating": 120.0,
    "sampling": 300.0,
    "saving": 120.0,
    "training": 30.0,
}
# The first step may compile, and nothing says how long one takes.
_FIRST_STEP_SECONDS: Final = 300.0
_SILENT_STEPS: Final = 5
_SILENT_EVALUATIONS: Final = 2
# What is counted in it.
_COUNTED: Final[dict[Phase, str]] = {
    "tokenising": "row",
    "reference": "row",
    "evaluating": "row",
    "sampling": "answer",
}
# What is part of an evaluation.
_EVALUATION: Final = ("evaluating", "sampling")


@dataclass(frozen=True)
class Progress:
    """Where a run is. Times in seconds.

    `done` and `of` count what the phase goes through, as far as it can be counted: rows, or answers of
    sampling; of tokenising `of` is not known. `later` counts the rows of the reference passes after this one;
    `step` of `total` are training steps (None before the run has said how many). `eval_seconds`,
    `save_seconds` and `kl_seconds` are those of the latest one. `reference_left` rows are scored under the
    reference in later steps, at `reference_pace` seconds a row. `paused_in` is what a paused run was doing;
    it stays set while a paused run evaluates on command. `updated` is the Unix time of the last event.
    """

    phase: Phase = "starting"
    step: int = 0
    total: int | None = None
    done: int = 0
    of: int = 0
    later: int = 0
    reference_began: tuple[float, int] | None = None
    reference_time: float = 0.0
    step_seconds: tuple[float, ...] = ()
    log_every: int = 1
    eval_every: int | None = None
    eval_seconds: float = 0.0
    save_every: int | None = None
    save_seconds: float = 0.0
    kl_every: int | None = None
    kl_seconds: float = 0.0
    reference_left: int = 0
    reference_pace: float = 0.0
    paused_in: Phase | None = None
    updated: float | None = None

    @property
    def eta(self) -> float | None:
        """Seconds until the run ends, if nobody pauses it.

        Steps, KL measurements, evaluations, checkpoints and what is left of the reference pass are counted.
        None while it is paused, and before the first step is measured: nothing honest can be said then.
        """
        if self.phase in ("training", "saving", *_EVALUATION):
            return self.work_left
        if self.phase != "reference" or self.work_left is None or self.reference_eta is None:
            return None
        return self.reference_eta + self.work_left

    @property
    def work_left(self) -> float | None:
        """Seconds of work after the reference pass, also of a run that is paused or stopped."""
        if self.total is None or not self.step_seconds:
            return None
        evaluations = _still_to_come(self.step, self.total, self.eval_every) + (self.phase in _EVALUATION)
        saves = _still_to_come(self.step, self.total, self.save_every)
        measurements = (
            0 if self.kl_every is None else self.total // self.kl_every - self.step // self.kl_every
        )
        return (
            (self.total - self.step) * median(self.step_seconds)
            + evaluations * self.eval_seconds
            + saves * self.save_seconds
            + measurements * self.kl_seconds
            + self.reference_left * self.reference_pace
        )

    @property
    def reference_eta(self) -> float | None:
        """Seconds until all reference passes end, None if none is going on or it has no pace yet."""
        if self.phase != "reference" or self.reference_began is None:
            return None
        began, first = self.reference_began
        if self.done <= first or self.reference_time <= began:
            return None
        left = self.of - self.done + self.later
        return left * (self.reference_time - began) / (self.done - first)


def phase_count(progress: Progress) -> str:
    """How far the phase is, where it is counted: `128/400 rows`; else empty."""
    what = _COUNTED.get(progress.phase)
    if what is None or not (progress.done or progress.of):
        return ""
    of = f"{progress.done:,}/" if progress.of else ""
    return of + counted(progress.of or progress.done, what)


def event_age(progress: Progress, now: float) -> float | None:
    """Seconds since the last event at the Unix time `now`, never negative; None before the first."""
    return None if progress.updated is None else max(0.0, now - progress.updated)


def silent_for(progress: Progress, now: float) -> float | None:
    """Seconds without an event, if that is longer than the run's work explains; else None.

    That is what _SILENT_SECONDS has for its phase, or five times what passes between two logged steps
    (median), or twice the last evaluation while one is going on. A run that is paused, has ended, or still
    loads its model or data is never silent.
    """
    quiet = event_age(progress, now)
    limit = _SILENT_SECONDS.get(progress.phase)
    if quiet is None or limit is None:
        return None
    if progress.step_seconds:
        limit = max(limit, _SILENT_STEPS * progress.log_every * median(progress.step_seconds))
    elif progress.phase == "training":
        limit = _FIRST_STEP_SECONDS
    if progress.phase in _EVALUATION:
        limit = max(limit, _SILENT_EVALUATIONS * progress.eval_seconds)
    return quiet if quiet > limit else None


def advance(progress: Progress, event: Event) -> Progress:
    """`progress` after one more event."""
    progress, data, seconds = replace(progress, updated=event.time), event.data, event.number("seconds")
    step = progress.step if event.step is None else event.step
    match event.type:
        case "step":
            return advance_steps(progress, [event])
        case "run.started":
            return _started(progress, event)
        case "reference":
            return _scored(progress, event)
        case "phase" if data.get("phase") in _SHOWN:
            done, of = (found if isinstance(found := data.get(key), int) else 0 for key in ("done", "total"))
            return replace(progress, phase=data["phase"], done=done, of=of)
        case "data" if isinstance(rows := data.get("rows"), int):
            return replace(progress, phase="tokenising", done=rows, of=0)
        case "run.resumed":
            return replace(progress, phase="loading", done=0, step=step, reference_began=None, paused_in=None)
        case "run.paused":
            return replace(progress, phase="paused", paused_in=progress.paused_in or progress.phase)
        case "run.continued":  # after a pause, or after the process was stopped or the machine slept
            phase = progress.paused_in or "training" if progress.phase == "paused" else progress.phase
            began = progress.reference_began
            if began is not None:
                began = (began[0] + (seconds or 0.0), began[1])
            return replace(progress, phase=phase, paused_in=None, reference_began=began)
        case "eval" | "samples" | "checkpoint":
            # The samples come last; without held-out rows they are all that an evaluation writes.
            back: Phase = "training" if progress.paused_in is None else "paused"
            progress = replace(progress, phase=back, step=step)
            if seconds is None:
                return progress
            if event.type == "checkpoint":
                return replace(progress, save_seconds=seconds)
            return replace(progress, eval_seconds=seconds)
    if event.type in ENDS:
        return replace(progress, phase=ENDS[event.type], step=step, paused_in=None)
    return progress


def advance_steps(progress: Progress, events: Sequence[Event]) -> Progress:
    """`advance` over a stretch of step events in one go: a long log is little else. At least one event."""
    measured: list[float] = []
    for event in reversed(events):
        seconds = metric_of(event, "step_seconds")
        if seconds is not None:
            measured.append(seconds)
            if len(measured) == _WINDOW:
                break
    step = next((event.step for event in reversed(events) if event.step is not None), progress.step)
    kl_seconds = next((found for event in reversed(events) if (found := event.number("kl_seconds"))), None)
    pace = next((found for event in reversed(events) if (found := _reference_pace(event))), None)
    return replace(
        progress,
        phase="training",
        step=step,
        step_seconds=(*progress.step_seconds, *reversed(measured))[-_WINDOW:],
        kl_seconds=progress.kl_seconds if kl_seconds is None else kl_seconds,
        reference_left=int(events[-1].number("reference_left") or 0),
        reference_pace=progress.reference_pace if pace is None else pace,
        paused_in=None,
        updated=events[-1].time,
    )


def progress_of(events: Iterable[Event]) -> Progress:
    """The progress after all of `events`."""
    progress = Progress()
    for event in events:
        progress = advance(progress, event)
    return progress


def _started(progress: Progress, event: Event) -> Progress:
    total = event.data.get("total_steps")
    return replace(
        progress,
        phase="loading",
        done=0,
        of=0,
        total=total if isinstance(total, int) else progress.total,
        eval_every=_option(event, "eval", "every"),
        save_every=_option(event, "save", "every"),
        kl_every=_option(event, "eval", "kl_every"),
        log_every=_option(event, "train", "log_every") or 1,
        paused_in=None,
    )


def _scored(progress: Progress, event: Event) -> Progress:
    done, of, later = (event.data.get(key) for key in ("done", "total", "later"))
    if not isinstance(done, int) or not isinstance(of, int):
        return progress
    # Training and held-out rows are scored in turn; each pass has its own count.
    began = progress.reference_began if done >= progress.done else None
    return replace(
        progress,
        phase="reference" if done < of else "training",
        done=done,
        of=of,
        later=later if isinstance(later, int) else 0,
        reference_began=began or (event.time, done),
        reference_time=event.time,
    )


def _reference_pace(event: Event) -> float | None:
    """Seconds a row of what a step scored under the reference; None where it scored nothing."""
    seconds, rows = event.number("reference_seconds"), event.number("reference_rows")
    return seconds / rows if seconds and rows else None


def _still_to_come(step: int, total: int, every: int | None) -> int:
    """How many multiples of `every`, the end included, lie after `step`."""
    if every is None or step >= total:
        return 0
    return (total - 1) // every - step // every + 1


def _option(start: Event, section: str, name: str) -> int | None:
    value = start.recipe_section(section).get(name)
    return value if isinstance(value, int) and value > 0 else None
