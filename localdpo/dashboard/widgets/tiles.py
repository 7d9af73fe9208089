"""The row of figures: the newest value of what matters most, whether it rises or falls, and its course."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

import numpy as np
from textual.strip import Strip
from textual.widget import Widget

from localdpo.core.text import has_words
from localdpo.dashboard.appbase import app_of
from localdpo.dashboard.axes import Axis, short
from localdpo.dashboard.feed import Interval
from localdpo.dashboard.picture import Picture
from localdpo.dashboard.plot import means, smooth
from localdpo.dashboard.state import RunState
from localdpo.dashboard.system import SystemMonitor, SystemUsage
from localdpo.records.metrics import ACCURACY, ALL_TIED, TIES, TILES, measured

_BARS: Final = ("▁▂▃▄▅▆▇█", "_.-~=+*#")
_RECENT: Final = 400  # points that the figure and the trend are taken from
_TREND_POINTS: Final = 10
_TREND_ERRORS: Final = 2.0
_COURSE_COLUMNS: Final = 64
_NARROWEST: Final = 12
_MOST: Final = 6
_LOOK_SECONDS: Final = 2.0


@dataclass(frozen=True)
class Tile:
    """What a tile shows. `trend`: `up`, `down` or `level`; `course` [c]: the values from first to last.

    A `figure` that is a moving average begins with ~.
    """

    name: str
    brief: str
    figure: str
    trend: str
    course: tuple[float, ...]


def tiles_of(state: RunState, weight: float = 0.0, words: str = "") -> list[Tile]:
    """The tiles of a run: those of whose metric it has a value and whose name has the words, at most six.

    `weight` of the moving average of noisy metrics, 0 for none.
    """
    tiles: list[Tile] = []
    for metric, tile in TILES.items():
        if len(tiles) == _MOST:
            break
        if not has_words(f"{tile.name} {metric.label} {metric.name}", words):
            continue
        series = measured(state.train, metric.name)
        ties = state.train.get(TIES)
        if metric.name == ACCURACY and ties is not None and ties.last == 1:
            tiles.append(Tile(tile.name, tile.brief, ALL_TIED, "level", ()))
            continue
        if series is None or series.last is None:
            continue
        values = series.values
        recent = values[-_RECENT:]
        weighted = weight if metric.noisy else 0.0
        line = smooth(recent, weighted)
        known = line[np.isfinite(line)]
        mark = "~" if weighted else ""
        figure = "-" if not math.isfinite(recent[-1]) else f"{mark}{_figure(float(known[-1]))}"
        if metric.unit == "GB":
            limit = state.start.number("memory_limit_gb")
            figure += " GB" if limit is None else f"/{limit:.3g} GB"
        steps = series.steps
        axis = Axis(
            float(steps[0]), max(float(steps[-1]), float(steps[0]) + 1), min(_COURSE_COLUMNS, len(steps))
        )
        course = means(np.where(np.isfinite(values), values, np.nan), axis.bounds(steps))
        tiles.append(
            Tile(tile.name, tile.brief, figure, trend(recent), tuple(course[np.isfinite(course)].tolist()))
        )
    return tiles


def _figure(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 100_000 else short(value)


def trend(values: np.ndarray) -> str:
    """`up`, `down` or `level`: the mean of the newest values against that of as many before them.

    `level` unless they differ by two standard errors, those of means of n noisy values each.
    """
    known = values[np.isfinite(values)][-2 * max(_TREND_POINTS, len(values) // 10) :]
    half = len(known) // 2
    if half < 2:
        return "level"
    before, after = known[:half], known[-half:]
    error = math.sqrt((before.var(ddof=1) + after.var(ddof=1)) / half)
    change = float(after.mean() - before.mean())
    if abs(change) <= max(_TREND_ERRORS * error, 1e-9 * float(np.abs(known).max())):
        return "level"
    return "up" if change > 0 else "down"


def sparkline(course: Sequence[float], cells: int, unicode: bool) -> str:
    """The course in `cells` characters, from lowest to highest bar; shorter where there are fewer values."""
    bars = _BARS[0 if unicode else 1]
    if not course or cells < 1:
        return ""
    values = np.array(course)
    if len(values) > cells:
        values = means(values, Axis(0, len(values) - 1, cells).bounds(np.arange(len(values))))
    low, high = float(values.min()), float(values.max())
    if high / 2 - low / 2 <= 1e-9 * max(abs(low), abs(high), 1e-300):
        return bars[0] * len(values)
    heights = (values / 2 - low / 2) / (high / 2 - low / 2) * (len(bars) - 1)
    return "".join(bars[round(height)] for height in heights.tolist())


class TileRow(Widget):
    """The tiles side by side: boxes where the widget is three rows high, one line where it is less."""

    def __init__(self, id: str | None = None) -> None:
        super().__init__(id=id)
        self._tiles: list[Tile] = []

    def show(self, tiles: list[Tile]) -> None:
        if tiles != self._tiles:
            self._tiles = tiles
            self.refresh()

    def render_line(self, y: int) -> Strip:
        picture = self._boxes() if self.size.height >= 3 else self._line()
        strips = picture.strips(app_of(self).palette)
        return strips[y] if y < len(strips) else Strip.blank(self.size.width)

    def _boxes(self) -> Picture:
        app = app_of(self)
        unicode = app.abilities.unicode
        picture = Picture(self.size.width, 3)
        corners, level, upright = ("╭╮╰╯", "─", "│") if unicode else ("++++", "-", "|")
        # As many as fit, whole; what is left of the row is shared.
        needs = [max(_NARROWEST, len(tile.name) + 4, len(tile.figure) + 4) for tile in self._tiles]
        ends = [end for end in accumulate(needs) if end <= self.size.width] or [self.size.width]
        spare = self.size.width - ends[-1]
        edges = [0, *(end + place * spare // len(ends) for place, end in enumerate(ends, start=1))]
        for tile, left, right in zip(self._tiles, edges, edges[1:], strict=False):
            inner = right - left - 2
            picture.put(0, left, corners[0] + level * inner + corners[1], "line")
            picture.put(1, left, upright + " " * inner + upright, "line")
            picture.put(2, left, corners[2] + level * inner + corners[3], "line")
            picture.put(0, left + 2, f" {tile.name} "[: inner - 1], "muted")
            picture.put(1, left + 2, tile.figure[: inner - 1], "ink", bold=True)
            column = left + 3 + len(tile.figure)
            if column < right - 2:
                colour = "muted" if tile.trend == "level" else "ink"
                picture.put(1, column, app.abilities.mark(tile.trend), colour)
            cells = right - column - 4
            picture.put(1, column + 2, sparkline(tile.course, cells, unicode), "chosen")
        return picture

    def _line(self) -> Picture:
        """As many tiles as fit, whole: name, figure, trend."""
        app = app_of(self)
        picture = Picture(self.size.width, max(1, self.size.height))
        column = 1
        for tile in self._tiles:
            mark = "" if tile.trend == "level" else app.abilities.mark(tile.trend)
            if column + len(tile.brief) + len(tile.figure) + 2 > self.size.width:
                break
            picture.put(0, column, tile.brief, "muted")
            picture.put(0, column + len(tile.brief) + 1, tile.figure, "ink", bold=True)
            column += len(tile.brief) + len(tile.figure) + 1
            picture.put(0, column, mark, "ink")
            column += 3
        return picture


class SystemRow(TileRow):
    """What the machine and the worker use, looked at every few seconds while it is shown."""

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._monitor = SystemMonitor()
        self._looks = Interval(_LOOK_SECONDS)
        self._usages: deque[SystemUsage] = deque(maxlen=_COURSE_COLUMNS)

    def poll(self, pid: int | None) -> None:
        """Look again, if it is shown and time for it. `pid`: of the worker, None without one."""
        if self.display and self._looks.has_passed:
            self._looks.restart()
            self.run_worker(self._look(pid), exclusive=True)

    async def _look(self, pid: int | None) -> None:
        # Programs are asked for some of it, and the screen does not wait for them.
        self._usages.append(await asyncio.to_thread(self._monitor.look, pid))
        self.show(system_tiles(self._usages))


def system_tiles(usages: Sequence[SystemUsage]) -> list[Tile]:
    """The tiles of the newest of these looks, with their course: of what is known."""
    now = usages[-1]
    of = "" if now.total is None else f"/{now.total:.3g}"
    texts: dict[str, tuple[str, str, Callable[[float], str]]] = {
        "cpu": ("machine cpu", "cpu", lambda value: f"{value:.0%}"),
        "memory": ("machine memory", "of machine", lambda value: f"{value:.3g}{of} GB"),
        "worker_cpu": ("worker cpu", "worker", lambda value: f"{value:.2g} cores"),
        "worker_memory": ("worker memory", "worker", lambda value: f"{value:.3g} GB"),
        "gpu": ("GPU", "GPU", lambda value: f"{value:.0%}"),
        "gpu_memory": ("GPU memory", "GPU mem", lambda value: f"{value:.3g} GB"),
        "power": (f"{now.power_of} power", "power", lambda value: f"{value:.3g} W"),
    }
    tiles = []
    for field, (name, brief, form) in texts.items():
        value = getattr(now, field)
        if value is not None:
            course = tuple(known for usage in usages if (known := getattr(usage, field)) is not None)
            tiles.append(Tile(name, brief, form(value), "level", course))
    return tiles
