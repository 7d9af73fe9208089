"""The chart widget.

It is our own because the dashboard exists for it. At six charts of 2 x 20,000 points, five frames a second,
textual-plot took 29% of a core and textual-plotext 42% even with their data thinned out first (Textual 8.2,
two cores); this one stays below a tenth. Both drop NaN and draw a line across the gap, which is the one thing
that a person watching a training run must see. And textual-plot fails under NO_COLOR.

A chart is drawn when something in it changed, and of the frame only the rows that differ are sent on.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from localdpo.dashboard.appbase import app_of
from localdpo.dashboard.axes import Axis
from localdpo.dashboard.drawing import ChartSeries, DrawnChart, Face, ReferenceValue, draw


class LineChart(Widget, can_focus=True):
    """Series over steps; `show` gives it what to draw.

    `titles`: the title from long to short. `name` tells charts of a screen apart.
    """

    def __init__(self, titles: tuple[str, ...], name: str | None = None) -> None:
        super().__init__(name=name)
        self._titles = titles
        self._series: Sequence[ChartSeries] = ()
        self._references: tuple[ReferenceValue, ...] = ()
        self._version: Hashable = None
        self._look: tuple[tuple[float, float] | None, bool, float | None] = (None, False, None)
        self._key: Hashable = None
        self._drawing: DrawnChart | None = None
        self._strips: list[Strip] = []

    def show(
        self,
        series: Sequence[ChartSeries],
        references: tuple[ReferenceValue, ...] = (),
        version: Hashable = None,
        *,
        window: tuple[float, float] | None = None,
        log: bool = False,
        cursor: float | None = None,
    ) -> None:
        """Draw `series`, the first on top; an equal `version` (not None) means unchanged series.

        `window`: the first and last step seen (None: all there are); `log`: a logarithmic scale; `cursor`:
        the step of a cross-hair.
        """
        if version is None or version != self._version:
            self._series, self._references = series, references
            self._key = None
        self._version = version
        self._look = (window, log, cursor)
        self._redraw()

    @property
    def axis(self) -> Axis | None:
        """The steps and columns of the chart as it was last drawn; None before, and where it is too small."""
        return self._drawing.axis if self._drawing is not None else None

    def step_at(self, column: int) -> float | None:
        """The step in the middle of a column; None outside the axes."""
        return None if self._drawing is None else self._drawing.step_at(column)

    def render_line(self, y: int) -> Strip:
        self._draw()
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width)

    def _redraw(self) -> None:
        """Draw, and have the rows that changed shown; what is not on the screen is drawn once it is."""
        if not self.size or not self.display:
            self.refresh()
            return
        before = self._strips
        if not self._draw():
            return
        if len(before) != len(self._strips):
            self.refresh()
            return
        changed = [y for y, old in enumerate(before) if old != self._strips[y]]
        if changed:
            self.refresh(*(Region(0, y, self.size.width, 1) for y in changed))

    def _draw(self) -> bool:
        """Draw if anything changed since; whether it did."""
        palette, abilities = app_of(self).palette, app_of(self).abilities
        key = (self._version, self._look, self.size, palette, self.has_focus)
        if key == self._key:
            return False
        self._key = key
        window, log, cursor = self._look
        face = Face(
            self._titles,
            window or whole(self._series),
            self._references,
            log,
            cursor,
            ascii=not abilities.unicode,
            shade=abilities.has_few_colours,
            chosen=self.has_focus,
        )
        self._drawing = draw(self.size.width, self.size.height, self._series, face)
        self._strips = self._drawing.picture.strips(palette)
        return True

    def on_focus(self) -> None:
        self._redraw()

    def on_blur(self) -> None:
        self._redraw()


def whole(series: Sequence[ChartSeries]) -> tuple[float, float]:
    """From step 0 (or the first, if it is earlier) to the last of `series`; left < right."""
    ends = [(float(curve.steps[0]), float(curve.steps[-1])) for curve in series if len(curve.steps)]
    first = min([0.0, *(begin for begin, _ in ends)])
    return first, max([first + 1.0, *(end for _, end in ends)])
