"""Walking through the evaluations of a run: which one is looked at, and a line of stops that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from textual import events
from textual.message import Message
from textual.widget import Widget

from localdpo.out.console import Text

if TYPE_CHECKING:
    from localdpo.dashboard.app import DashboardApp


class Walk:
    """A place in a growing list of steps. It stays with the newest until it is moved off it. Pure."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self._chosen: int | None = None

    @property
    def index(self) -> int | None:
        """Place of the step that is looked at, None without steps."""
        if not self.steps:
            return None
        if self._chosen is None:
            return len(self.steps) - 1
        later = [place for place, step in enumerate(self.steps) if step >= self._chosen]
        return later[0] if later else len(self.steps) - 1

    @property
    def step(self) -> int | None:
        """The step that is looked at."""
        return None if self.index is None else self.steps[self.index]

    @property
    def follows(self) -> bool:
        """Whether a new step will be looked at when it comes."""
        return self._chosen is None

    def extend(self, steps: Sequence[int]) -> None:
        """The steps there are now, in order. A step that a resume took away gives way to the next one."""
        self.steps = list(steps)

    def move(self, by: int) -> None:
        """So many steps on; at the newest one it follows again."""
        if self.index is not None:
            self.to(self.index + by)

    def to(self, index: int) -> None:
        """To the step at `index`, or to the nearest there is."""
        if self.steps:
            place = min(max(index, 0), len(self.steps) - 1)
            self._chosen = None if place == len(self.steps) - 1 else self.steps[place]

    def newest(self) -> None:
        """To the newest step, and stay with the newest."""
        self._chosen = None


class StepSlider(Widget):
    """`step 40   +---+---O---+   3 of 4, newest`. A click on a stop goes there."""

    class Moved(Message):
        """A click asked for the step at `index`."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    def __init__(self, what: str) -> None:
        super().__init__()
        self._what = what
        self._walk = Walk()
        self._places: list[int] = []
        self._note = ""

    def show(self, walk: Walk, note: str = "") -> None:
        """Show where `walk` stands; `note` is said at the end of the line."""
        self._walk, self._note = walk, note
        self.refresh()

    def render(self) -> Text:
        app = cast("DashboardApp", self.app)
        palette, mark = app.palette, app.abilities.mark
        index = self._walk.index
        if index is None:
            self._places = []
            return Text(
                f"no {self._what} yet: the first come with the evaluation at step 0", style=palette.muted
            )
        steps = self._walk.steps
        line = Text(no_wrap=True, overflow="ellipsis")
        line.append(f"step {steps[index]} ".ljust(len(f"step {steps[-1]} ")), "bold")
        newest = ", newest" if index == len(steps) - 1 else ""
        tail = f" {index + 1} of {len(steps)}{newest}{'   ' + self._note if self._note else ''}"
        width = min(60, max(8, self.size.width - line.cell_len - len(tail) - 1))
        self._places = spread(len(steps), width, line.cell_len)
        start = line.cell_len
        stops = dict.fromkeys(self._places)
        for column in range(start, start + width):
            if column == self._places[index]:
                line.append(mark("here"), f"bold {palette.chosen}")
            elif column <= self._places[index]:
                line.append(mark("stop" if column in stops else "done"), palette.chosen)
            else:
                line.append(mark("stop" if column in stops else "todo"), palette.muted)
        return line.append(tail, palette.muted)

    def on_click(self, event: events.Click) -> None:
        if self._places:
            nearest = min(range(len(self._places)), key=lambda place: abs(self._places[place] - event.x))
            self.post_message(self.Moved(nearest))


def spread(count: int, width: int, start: int) -> list[int]:
    """The columns of `count` stops, spread over `width` columns from `start` on."""
    if count == 1:
        return [start + width - 1]
    return [start + round(place * (width - 1) / (count - 1)) for place in range(count)]
