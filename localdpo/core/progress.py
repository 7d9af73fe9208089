"""What a run is doing and how long it still takes, as pure functions of its events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, Final, Literal

from localdpo.core.events import Event, effective
from localdpo.core.rundir import State, state_of

Phase = Literal[
    "starting", "loading", "reference", "evaluating", "training", "paused", "finished", "failed", "stopped"
]

# Steps differ in length with their batch; the median of this many is steady and still follows a change.
_WINDOW: Final = 32
_ENDS: Final[dict[str, Phase]] = {
    "run.finished": "finished",
    "run.failed": "failed",
    "run.stopped": "stopped",
    "run.paused": "paused",
}


@dataclass(frozen=True)
class Progress:
    """Where a run is. Times in seconds.

    `done` and `of` count rows of the reference pass; `step` of `total` are training steps (None before the
    run has said how many). `eval_seconds` and `save_seconds` are those of the latest one.
    """

    phase: Phase = "starting"
    step: int = 0
    total: int | None = None
    done: int = 0
    of: int = 0
    reference_began: tuple[float, int] | None = None
    reference_time: float = 0.0
    step_seconds: tuple[float, ...] = ()
    eval_every: int | None = None
    eval_seconds: float = 0.0
    save_every: int | None = None
    save_seconds: float = 0.0

    @property
    def eta(self) -> float | None:
        """Seconds until the run ends; evaluations and checkpoints still to come are counted.

        None before the first step is measured: nothing honest can be said then.
        """
        if self.total is None or not self.step_seconds or self.phase not in ("training", "evaluating"):
            return None
        evaluations = _still_to_come(self.step, self.total, self.eval_every) + (self.phase == "evaluating")
        saves = _still_to_come(self.step, self.total, self.save_every)
        steps = (self.total - self.step) * median(self.step_seconds)
        return steps + evaluations * self.eval_seconds + saves * self.save_seconds

    @property
    def reference_eta(self) -> float | None:
        """Seconds until the reference pass alone ends, None if it is not going on or has no pace yet."""
        if self.phase != "reference" or self.reference_began is None:
            return None
        began, first = self.reference_began
        if self.done <= first or self.reference_time <= began:
            return None
        return (self.of - self.done) * (self.reference_time - began) / (self.done - first)


def advance(progress: Progress, event: Event) -> Progress:
    """`progress` after one more event."""
    if event.type in _ENDS:
        return replace(progress, phase=_ENDS[event.type], step=_step(progress, event))
    update = _UPDATES.get(event.type)
    return update(progress, event) if update is not None else progress


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
        total=total if isinstance(total, int) else progress.total,
        eval_every=_option(event, "eval", "every"),
        save_every=_option(event, "save", "every"),
    )


def _resumed(progress: Progress, event: Event) -> Progress:
    phase: Phase = "training" if progress.phase == "paused" else "loading"
    return replace(progress, phase=phase, step=_step(progress, event), reference_began=None)


def _reference(progress: Progress, event: Event) -> Progress:
    done, of = event.data.get("done"), event.data.get("total")
    if not isinstance(done, int) or not isinstance(of, int):
        return progress
    # Training and held-out rows are scored in turn; each pass has its own count.
    began = progress.reference_began if done >= progress.done else None
    after: Phase = "evaluating" if progress.step == 0 else "training"
    return replace(
        progress,
        phase="reference" if done < of else after,
        done=done,
        of=of,
        reference_began=began or (event.time, done),
        reference_time=event.time,
    )


def _stepped(progress: Progress, event: Event) -> Progress:
    step = _step(progress, event)
    seconds = metric(event, "step_seconds")
    measured = progress.step_seconds if seconds is None else (*progress.step_seconds, seconds)[-_WINDOW:]
    due = progress.eval_every is not None and (step % progress.eval_every == 0 or step == progress.total)
    return replace(progress, phase="evaluating" if due else "training", step=step, step_seconds=measured)


def _evaluated(progress: Progress, event: Event) -> Progress:
    seconds = _number(event.data.get("seconds"))
    return replace(
        progress,
        phase="training",
        step=_step(progress, event),
        eval_seconds=progress.eval_seconds if seconds is None else seconds,
    )


def _saved(progress: Progress, event: Event) -> Progress:
    seconds = _number(event.data.get("seconds"))
    return progress if seconds is None else replace(progress, save_seconds=seconds)


_UPDATES: Final = {
    "run.started": _started,
    "run.resumed": _resumed,
    "reference": _reference,
    "step": _stepped,
    "eval": _evaluated,
    "checkpoint": _saved,
}


def _step(progress: Progress, event: Event) -> int:
    return progress.step if event.step is None else event.step


def _still_to_come(step: int, total: int, every: int | None) -> int:
    """How many multiples of `every`, the end included, lie after `step`."""
    if every is None or step >= total:
        return 0
    return (total - 1) // every - step // every + 1


@dataclass(frozen=True)
class RunSummary:
    """One run in a table. None where the log does not say.

    Accuracy, margin and KL are those of the last evaluation; times are Unix seconds.
    """

    name: str
    state: State
    loss: str | None
    beta: float | None
    model: str | None
    step: int
    total: int | None
    accuracy: float | None
    margin: float | None
    kl: float | None
    started: float | None
    updated: float | None


def summarise(name: str, events: Iterable[Event], running: bool) -> RunSummary:
    """The line of a run in a table of runs; times are Unix seconds."""
    log = list(events)
    kept = effective(log)
    progress = progress_of(kept)
    start = next((event for event in reversed(kept) if event.type == "run.started"), None)
    last = next((event for event in reversed(kept) if event.type == "eval"), None)
    return RunSummary(
        name=name,
        state=state_of(log, running),
        loss=_text(start, "loss"),
        beta=_number(_recipe(start, "loss").get("beta")),
        model=_text(start, "model"),
        step=progress.step,
        total=progress.total,
        accuracy=metric(last, "rewards/accuracies"),
        margin=metric(last, "rewards/margins"),
        kl=metric(last, "kl"),
        started=log[0].time if log else None,
        updated=log[-1].time if log else None,
    )


def metrics_of(event: Event | None) -> Mapping[str, Any]:
    """The metrics of a step, eval or run.finished event; empty for any other."""
    metrics = event.data.get("metrics") if event is not None else None
    return metrics if isinstance(metrics, Mapping) else {}


def metric(event: Event | None, name: str) -> float | None:
    """One metric, None where it is missing or was not finite."""
    return _number(metrics_of(event).get(name))


def _recipe(start: Event | None, section: str) -> Mapping[str, Any]:
    recipe = start.data.get("recipe") if start is not None else None
    found = recipe.get(section) if isinstance(recipe, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _option(start: Event, section: str, name: str) -> int | None:
    value = _recipe(start, section).get(name)
    return value if isinstance(value, int) and value > 0 else None


def _text(event: Event | None, key: str) -> str | None:
    value = event.data.get(key) if event is not None else None
    return value if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
