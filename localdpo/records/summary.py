"""A run in one line of a table, from its events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from localdpo.records.deaths import end_lines
from localdpo.records.events import Event, as_number, effective
from localdpo.records.metrics import ACCURACY, all_tied, metric_of, metrics_of
from localdpo.records.progress import progress_of
from localdpo.records.rundir import State, is_end, state_of


@dataclass(frozen=True)
class RunSummary:
    """One run in a table. None where the log does not say.

    Accuracy, margin and KL are those of the last evaluation; times are Unix seconds; `why` is what the log
    says of a run that failed or crashed.
    """

    name: str
    state: State
    loss: str | None
    beta: float | None
    model: str | None
    step: int
    total: int | None
    accuracy: float | None
    all_tied: bool
    margin: float | None
    kl: float | None
    started: float | None
    updated: float | None
    why: str | None = None


def summarise(name: str, events: Iterable[Event], running: bool) -> RunSummary:
    """The line of a run in a table of runs; times are Unix seconds."""
    log = list(events)
    kept = effective(log)
    progress = progress_of(kept)
    start = next((event for event in reversed(kept) if event.type == "run.started"), None)
    last = next((event for event in reversed(kept) if event.type == "eval"), None)
    state = state_of(log, running)
    end = next((event for event in reversed(log) if is_end(event)), None)
    return RunSummary(
        name=name,
        state=state,
        loss=start.text("loss") if start else None,
        beta=as_number(start.recipe_section("loss").get("beta")) if start else None,
        model=start.text("model") if start else None,
        step=progress.step,
        total=progress.total,
        accuracy=metric_of(last, ACCURACY),
        all_tied=all_tied(metrics_of(last)),
        margin=metric_of(last, "rewards/margins"),
        kl=metric_of(last, "kl"),
        started=log[0].time if log else None,
        updated=log[-1].time if log else None,
        why="; ".join(end_lines(end)) or None if state in ("failed", "crashed") else None,
    )
