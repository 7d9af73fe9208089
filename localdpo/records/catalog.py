"""All that is in a folder of runs: the runs, and the series with theirs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from localdpo.core.errors import UserError
from localdpo.records.checkpoints import Note
from localdpo.records.rundir import folders_of, list_runs, spelled
from localdpo.records.runs import RunSummary, read_summaries
from localdpo.records.series import RoundsDir, SeriesDir, read_record
from localdpo.records.sweeps import SweepDir, results_of

KINDS: Final[tuple[type[SeriesDir], ...]] = (RoundsDir, SweepDir)


def list_series(runs_dir: str | Path) -> list[SeriesDir]:
    """Every series in `runs_dir`."""
    return [series for kind in KINDS for series in folders_of(runs_dir, kind)]


def find_series(runs_dir: str | Path, name: str) -> SeriesDir | None:
    """The series of this name; None if there is none."""
    path = spelled(Path(runs_dir) / name)
    return next((series for kind in KINDS if (series := kind(path)).exists()), None)


def results_json(series: SeriesDir) -> dict[str, object]:
    """What came of a series so far, as `rounds` and `sweep` print it with --json.

    Raises UserError when what the series keeps is damaged.
    """
    if isinstance(series, SweepDir):
        return results_of(series).to_json()
    assert isinstance(series, RoundsDir)
    return read_record(series).to_json()


def read_all(runs_dir: str | Path, note: Note) -> list[RunSummary]:
    """A summary of every run and series in `runs_dir`, the latest first, each series before its runs.

    `note` gets a line for each log, and each record of a series, that is damaged or cannot be read.
    """
    groups = [[summary] for summary in read_summaries(list_runs(runs_dir), note)]
    for series in list_series(runs_dir):
        members = read_summaries(series.members(), note)
        summary = summary_of(series)
        for line in summary.ended:
            note(line)
        groups.append([summary, *(replace(member, within=series.name) for member in members)])

    def order(group: list[RunSummary]) -> tuple[float, str]:
        # When the log of one of them grew, or it was made.
        return -max(one.updated or one.run.recipe.stat().st_mtime for one in group), group[0].name

    return [summary for group in sorted(groups, key=order) for summary in group]


def summary_of(series: SeriesDir) -> RunSummary:
    """The series as a line of a table of runs: runs that are done as steps, figures of the last or best.

    Where its record is damaged, `ended` says so.
    """
    files = (series.recipe, *(run.events for run in series.members()))
    updated = max((path.stat().st_mtime for path in files if path.exists()), default=None)
    empty = RunSummary(
        series, "stopped", "training", series.command, started=updated, launched=updated, updated=updated
    )
    try:
        summary = _with_sweep(series, empty) if isinstance(series, SweepDir) else _with_rounds(series, empty)
    except UserError as error:
        summary = replace(empty, ended=error.lines)
    return replace(summary, state="running") if series.is_running() else summary


def _with_rounds(series: SeriesDir, summary: RunSummary) -> RunSummary:
    assert isinstance(series, RoundsDir)
    record = read_record(series)
    first = record.rounds[-1].first if record.rounds else None
    return replace(
        summary,
        state="stopped" if record.ended is None else "finished",
        step=len(record.rounds),
        total=record.wanted or None,
        win=None if first is None else first.value,
    )


def _with_sweep(series: SweepDir, summary: RunSummary) -> RunSummary:
    results = results_of(series)
    best = next((run for run in results.runs if run.name == results.best), None)
    if best is not None:
        last = best.summary
        summary = replace(summary, accuracy=last.accuracy, margin=last.margin, kl=last.kl)
    return replace(
        summary,
        state="stopped" if results.left else "finished",
        step=results.finished,
        total=len(results.runs),
        win=None if best is None or best.win is None else best.win.value,
    )
