"""Sweep: the runs of a sweep, and how their accuracy rose with their KL."""

from __future__ import annotations

from textual.widget import Widget

from localdpo.dashboard.screens.series import SeriesScreen, SeriesTable
from localdpo.dashboard.widgets.basic import ListTable
from localdpo.dashboard.widgets.overlay import MOST_RUNS, Overlay
from localdpo.records.rundir import RunDir
from localdpo.records.sweeps import SweepDir, closing_lines, results_of, stage_of, table_of


class SweepScreen(SeriesScreen):
    """The runs of a sweep; those around the selected one are overlaid below."""

    series: SweepDir

    def look(self) -> SeriesTable:
        results = results_of(self.series)
        headings, rows = table_of(results)
        rest = frozenset(headings[2:]) - {"accuracy", "KL", ""}
        stage, lines = stage_of(self.series, results), closing_lines(self.series, results)
        return SeriesTable(stage, lines, headings, rows, rest)

    def figures(self) -> Widget:
        return Overlay()

    def draw(self) -> None:
        rows = self._table.rows
        first = max(0, min(self.query_one(ListTable).cursor_row, len(rows) - MOST_RUNS))
        runs = (RunDir(self.series.path / row[0]) for row in rows[first : first + MOST_RUNS])
        self.query_one(Overlay).show([run for run in runs if run.exists()])

    def poll(self) -> None:
        self.query_one(Overlay).poll()

    def on_data_table_row_highlighted(self) -> None:
        self.draw()
