"""The table of runs: its runs, read again only where something changed, and how its columns are laid out."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from localdpo.core.text import has_words, printable
from localdpo.dashboard.terminal import Abilities, Palette
from localdpo.out.console import Text
from localdpo.records.catalog import list_series, summary_of
from localdpo.records.rundir import list_runs
from localdpo.records.runs import RUN_COLUMNS, RunColumn, RunReader, RunSummary

# Seconds that one refresh may take; what is left is read by the next.
BUDGET: Final = 0.03
_STEP_WIDTH: Final = 9


class RunIndex:
    """The runs and series in `runs_dir`; `refresh` keeps them up to date. 100 that stand still cost a few
    system calls each."""

    def __init__(self, runs_dir: Path) -> None:
        self._runs_dir = runs_dir
        self._readers: dict[str, RunReader] = {}
        self._series: list[RunSummary] = []
        self._due: list[str] = []

    @property
    def is_reading(self) -> bool:
        """Whether the last refresh left runs for the next."""
        return bool(self._due)

    @property
    def runs(self) -> list[RunSummary]:
        """The most recently active first."""
        runs = [*(reader.summary for reader in self._readers.values()), *self._series]
        return sorted(runs, key=lambda run: (-(run.updated or 0.0), run.name))

    def refresh(self, budget: float = BUDGET) -> None:
        """Look at as many runs as `budget` seconds allow, all in turn."""
        deadline = time.monotonic() + budget
        if not self._due:
            runs = {run.name: run for run in list_runs(self._runs_dir)}
            self._readers = {name: self._readers.get(name) or RunReader(run) for name, run in runs.items()}
            self._series = [summary_of(series) for series in list_series(self._runs_dir)]
            self._due = list(runs)
        while self._due and time.monotonic() < deadline:
            self._readers[self._due.pop(0)].refresh()


def _short_steps(steps: str) -> str:
    """`12k/1.2M` where the numbers have no room."""
    return steps if len(steps) <= _STEP_WIDTH else "/".join(_count(int(part)) for part in steps.split("/"))


def _count(steps: int) -> str:
    """`999`, `12k`, `1.2M`."""
    if steps < 10_000:
        return str(steps)
    return f"{steps // 1000}k" if steps < 1_000_000 else f"{steps / 1e6:.1f}M"


@dataclass(frozen=True)
class Column:
    """A column as it is laid out.

    Attributes:
        title: heading.
        width: cells; the name's column takes what is left over.
        rank: in a narrow table the columns of the highest rank are left out first; 0 always stays.
        shorten: makes a cell's text fit.
    """

    title: str
    run: RunColumn
    width: int
    rank: int
    shorten: Callable[[str], str] | None = None


COLUMNS: Final = (
    Column("name", RUN_COLUMNS["name"], 14, 0),
    Column("model", RUN_COLUMNS["model"], 12, 8, lambda model: Path(model).name),
    Column("loss", RUN_COLUMNS["loss"], 8, 4),
    Column("beta", RUN_COLUMNS["beta"], 4, 7),
    Column("step", RUN_COLUMNS["step"], _STEP_WIDTH, 1, _short_steps),
    Column("acc", RUN_COLUMNS["accuracy"], 5, 2),
    Column("margin", RUN_COLUMNS["margin"], 6, 3),
    Column("KL", RUN_COLUMNS["kl"], 6, 5),
    Column("win", RUN_COLUMNS["win"], 4, 6),
    Column("mem GB", RUN_COLUMNS["memory"], 6, 9),
    Column("started", RUN_COLUMNS["started"], 7, 6),
)
# In the order of the key; the first is how the table opens.
SORTABLE: Final = (COLUMNS[-1], *(column for column in COLUMNS[:-1] if column.title not in ("beta", "step")))
# Marks, state and its word, before the columns above.
LEAD_WIDTH: Final = 12
_PADDING: Final = 2


def fitting(width: int) -> list[tuple[Column, int]]:
    """The columns that fit into `width` cells, each with its width; the name takes what is left over."""
    chosen = list(COLUMNS)
    while _needed(chosen) > width and any(column.rank > 0 for column in chosen):
        chosen.remove(max(chosen, key=lambda column: column.rank))
    spare = max(0, width - _needed(chosen))
    return [(column, column.width + (min(spare, 24) if column.title == "name" else 0)) for column in chosen]


def _needed(columns: Sequence[Column]) -> int:
    return LEAD_WIDTH + _PADDING + sum(column.width + _PADDING for column in columns)


def lead(run: RunSummary, mark: str | None, abilities: Abilities, palette: Palette) -> Text:
    """The mark of an overlaid run (its letter), the state's glyph and its word."""
    word = "paused" if run.state == "running" and run.phase == "paused" else run.state
    style = {
        "running": palette.chosen,
        "finished": palette.good,
        "failed": palette.critical,
        "crashed": palette.critical,
    }.get(word, palette.muted)
    return Text.assemble(
        (f"{mark or ' '} ", f"bold {palette.rejected}"),
        (f"{abilities.mark(word)} {word}", style),
        no_wrap=True,
    )


def cell(column: Column, width: int, run: RunSummary, now: float, abilities: Abilities) -> Text:
    """One cell; what is not known is a dash."""
    words = printable(column.run.text(run, now))
    if column.shorten is not None:
        words = column.shorten(words)
    words = words or abilities.mark("unknown")
    if len(words) > width:
        words = words[: width - 1] + abilities.mark("waiting")[:1]
    return Text(words, justify="left" if column.run.is_text else "right", no_wrap=True)


def matches(run: RunSummary, words: str) -> bool:
    """Whether name, state, model or loss contain each of the words."""
    return has_words(" ".join((run.name, run.state, run.model or "", run.loss or "")), words)


def is_descending(column: Column) -> bool:
    """Whether the largest come first, unless the order is reversed."""
    return not (column.run.is_text or column.run.lowest_first)


def arranged(runs: Iterable[RunSummary], column: Column, reverse: bool, words: str) -> list[RunSummary]:
    """The runs that match `words`, sorted by `column`; what has no value there comes last."""

    def value(run: RunSummary) -> Any:
        return column.run.value(run)

    shown = [run for run in runs if matches(run, words)]
    known = [run for run in shown if _is_known(value(run))]
    rest = [run for run in shown if not _is_known(value(run))]
    return sorted(known, key=value, reverse=is_descending(column) != reverse) + rest


def _is_known(value: float | str | None) -> bool:
    return value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))
