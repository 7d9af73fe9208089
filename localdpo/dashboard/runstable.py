"""The columns of the table of runs: what they show, how wide they are, how they sort. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from localdpo.core.text import age, printable
from localdpo.dashboard.index import RunLine
from localdpo.dashboard.terminal import Abilities
from localdpo.dashboard.themes import Palette
from localdpo.out.console import Text

_STEP_WIDTH: Final = 9
Sorter = Callable[[RunLine], float | str | None]


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: heading.
        width: cells; the name's column takes what is left over.
        rank: in a narrow table the columns of the highest rank are left out first; 0 always stays.
        text: the cell, "" where nothing is known.
        sorter: what the table is sorted by, None last; None: not a column to sort by.
        left: whether the text stands at the left.
        descending: whether the largest come first, unless turned round.
    """

    title: str
    width: int
    rank: int
    text: Callable[[RunLine, float], str]
    sorter: Sorter | None = None
    left: bool = False
    descending: bool = True


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _gigabytes(value: float | None) -> str:
    return _number(value, 1 if value is None or value >= 1 else 2)


def _steps(line: RunLine, now: float) -> str:
    if line.total is None:
        return _count(line.step)
    whole = f"{line.step}/{line.total}"
    return whole if len(whole) <= _STEP_WIDTH else f"{_count(line.step)}/{_count(line.total)}"


def _count(steps: int) -> str:
    """`999`, `12k`, `1.2M`."""
    if steps < 10_000:
        return str(steps)
    return f"{steps // 1000}k" if steps < 1_000_000 else f"{steps / 1e6:.1f}M"


def _model(line: RunLine, now: float) -> str:
    return line.start.model.rstrip("/").rsplit("/", 1)[-1]


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}%"


def _age(time: float | None, now: float) -> str:
    return "" if time is None else age(now - time)


COLUMNS: Final[tuple[Column, ...]] = (
    Column("name", 14, 0, lambda line, now: line.name, lambda line: line.name, left=True, descending=False),
    Column("model", 12, 8, _model, lambda line: _model(line, 0.0), left=True, descending=False),
    Column(
        "loss",
        8,
        4,
        lambda line, now: line.start.loss,
        lambda line: line.start.loss,
        left=True,
        descending=False,
    ),
    Column("beta", 4, 7, lambda line, now: "" if line.start.beta is None else f"{line.start.beta:g}"),
    Column("step", _STEP_WIDTH, 1, _steps),
    Column(
        "acc",
        5,
        2,
        lambda line, now: "tied" if line.all_tied else _number(line.accuracy, 2),
        lambda line: line.accuracy,
    ),
    Column("margin", 6, 3, lambda line, now: _number(line.margin, 3), lambda line: line.margin),
    Column("KL", 6, 5, lambda line, now: _number(line.kl, 3), lambda line: line.kl, descending=False),
    Column("win", 4, 6, lambda line, now: _share(line.win), lambda line: line.win),
    Column("mem GB", 6, 9, lambda line, now: _gigabytes(line.memory), lambda line: line.memory),
    Column(
        "started",
        7,
        6,
        lambda line, now: _age(line.start.time, now),
        lambda line: line.start.time or line.updated,
    ),
)
# In the order of the key; the first is how the table opens.
SORTABLE: Final[tuple[Column, ...]] = tuple(
    sorted(
        (column for column in COLUMNS if column.sorter is not None),
        key=lambda column: column.title != "started",
    )
)
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


def lead(line: RunLine, mark: str | None, abilities: Abilities, palette: Palette) -> Text:
    """The mark of an overlaid run (its letter), the state's glyph and its word."""
    word = "paused" if line.state == "running" and line.phase == "paused" else line.state
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


def cell(column: Column, width: int, line: RunLine, now: float, abilities: Abilities) -> Text:
    """One cell; what is not known is a dash."""
    words = printable(column.text(line, now)) or abilities.mark("unknown")
    if len(words) > width:
        words = words[: width - 1] + abilities.mark("waiting")[:1]
    return Text(words, justify="left" if column.left else "right", no_wrap=True)


def matches(line: RunLine, words: str) -> bool:
    """Whether name, state, model or loss contain each of the words."""
    text = " ".join((line.name, line.state, line.start.model, line.start.loss)).lower()
    return all(word in text for word in words.lower().split())


def arranged(lines: Iterable[RunLine], column: Column, reverse: bool, words: str) -> list[RunLine]:
    """The lines that match `words`, sorted by `column`; what has no value there comes last."""
    sorter = column.sorter
    assert sorter is not None

    def value(line: RunLine) -> Any:
        return sorter(line)

    kept = [line for line in lines if matches(line, words)]
    known = [line for line in kept if _is_known(value(line))]
    rest = [line for line in kept if not _is_known(value(line))]
    return sorted(known, key=value, reverse=column.descending != reverse) + rest


def _is_known(value: float | str | None) -> bool:
    return value is not None and value != "" and not (isinstance(value, float) and math.isnan(value))
