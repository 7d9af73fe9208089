"""Runs: all runs of the folder; those that are marked, or the selected one, as curves below."""

from __future__ import annotations

from typing import ClassVar, Final

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.coordinate import Coordinate
from textual.widgets import Input, Static

from localdpo.core.errors import UserError
from localdpo.core.names import command_line
from localdpo.core.text import printable
from localdpo.dashboard import runstable
from localdpo.dashboard.feed import Interval, RunFeed
from localdpo.dashboard.screens.base import RunScreen
from localdpo.dashboard.screens.dialogs import DELETE_CHOICES, ChoiceDialog
from localdpo.dashboard.widgets.basic import ListTable, TextLine
from localdpo.dashboard.widgets.overlay import MOST_RUNS, Overlay
from localdpo.launch.processes import start_worker
from localdpo.out.console import Text
from localdpo.records.checkpoints import restart_note
from localdpo.records.rundir import RunDir
from localdpo.records.runs import RunSummary
from localdpo.records.series import SeriesDir
from localdpo.records.wording import resume_command

# Between two looks at the folder.
_LOOK_SECONDS: Final = 1.0
_LOW: Final = 22


class FilterInput(Input):
    """The words to filter by; escape clears them."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "screen.filter_off", show=False)]


class RunsScreen(RunScreen):
    """A table that stays up to date; open, mark, resume, delete."""

    NAME = "runs"
    SHOWS_ENDING = False

    def __init__(self) -> None:
        super().__init__()
        self._index: runstable.RunIndex | None = None
        self._marked: list[str] = []
        self._selected: str | None = None
        self._sort = 0
        self._reverse = False
        self._looks = Interval(_LOOK_SECONDS)
        self._shown: list[RunSummary] = []
        self._columns: object = None
        self._cells: dict[str, list[Text]] = {}

    def body(self) -> ComposeResult:
        yield FilterInput(placeholder="filter: words in name, state, model or loss", id="filter")
        yield TextLine(id="sorting")
        yield ListTable(id="runs", cursor_type="row")
        yield Static(id="ended")
        yield Overlay()

    def on_mount(self) -> None:
        self._index = runstable.RunIndex(self.dashboard.runs_dir)
        self._selected = self.dashboard.feed.run.name if self.dashboard.feed is not None else None
        self._index.refresh()
        self.query_one(ListTable).focus()

    def on_resize(self) -> None:
        self.query_one(Overlay).display = self.size.height >= _LOW
        self._fill()

    def show(self, feed: RunFeed) -> None:
        if self._selected is None:
            self._selected = feed.run.name

    def tick(self, now: float) -> None:
        # A folder of many runs is read over several beats; one that is read is looked at once a second.
        self.query_one(Overlay).poll()
        if self._index is None or not (self._looks.has_passed or self._index.is_reading):
            return
        self._looks.restart()
        self._index.refresh()
        self._fill()

    # --- keys -----------------------------------------------------------------------------------------

    def action_open(self) -> None:
        run = self._run()
        if run is None:
            return
        if isinstance(run, SeriesDir):
            self.dashboard.show_series(run)
            return
        feed = self.dashboard.feed
        if feed is not None and feed.run.path == run.path:
            self.dashboard.action_go("live")
        else:
            self.dashboard.attach(run)

    def action_mark(self) -> None:
        name = self._selected
        if name is None:
            return
        if name in self._marked:
            self._marked.remove(name)
        elif len(self._marked) >= MOST_RUNS:
            self.notify(f"at most {MOST_RUNS} runs can be overlaid; unmark one first", severity="warning")
        else:
            self._marked.append(name)
        self._fill()

    def action_unmark(self) -> None:
        self._marked.clear()
        self._fill()

    def action_sort(self) -> None:
        self._sort = (self._sort + 1) % len(runstable.SORTABLE)
        self._fill()

    def action_reverse(self) -> None:
        self._reverse = not self._reverse
        self._fill()

    def action_filter(self) -> None:
        words = self.query_one(FilterInput)
        words.add_class("-shown")
        # Now: `focus` would wait until the keys that have come meanwhile are obeyed.
        self.set_focus(words)

    def action_filter_off(self) -> None:
        words = self.query_one(FilterInput)
        words.value = ""
        words.remove_class("-shown")
        self.query_one(ListTable).focus()

    def action_jump(self, where: str) -> None:
        table = self.query_one(ListTable)
        page = max(1, table.size.height - 2)
        rows = {"first": -table.row_count, "before": -page, "next": page, "last": table.row_count}
        table.move_by(rows[where])

    def action_resume(self) -> None:
        run = self._run()
        if run is None:
            return
        if isinstance(run, SeriesDir):
            self.notify(f"resume it with: {resume_command(run)}")
            return
        if run.status() == "finished":
            self.notify(f"{run.name} is finished: nothing is left to do", severity="warning")
            return
        again = restart_note(run)
        try:
            self.dashboard.attach(run, start_worker(run))
        except UserError as error:
            self.notify(str(error), severity="error")
            return
        if again is not None:
            self.notify(again, severity="warning")

    def action_delete(self) -> None:
        run = self._run()
        if run is None:
            return
        if run.is_running():
            self.notify(f"{run.name} is running; stop it first (x)", severity="warning")
            return

        def answered(choice: str | None) -> None:
            if choice == "delete":
                self._delete(run)

        question = ChoiceDialog(f"Delete {run.path}?", "This cannot be undone.", DELETE_CHOICES)
        self.app.push_screen(question, answered)

    def on_input_changed(self) -> None:
        self._fill()

    def on_input_submitted(self) -> None:
        self.query_one(ListTable).focus()

    def on_data_table_row_highlighted(self, event: ListTable.RowHighlighted) -> None:
        # Filling the table highlights rows on the way; only what the cursor rests on counts.
        table = self.query_one(ListTable)
        if 0 <= table.cursor_row < len(self._shown):
            self._selected = self._shown[table.cursor_row].name
            self._draw_overlay()

    def on_data_table_row_selected(self) -> None:
        self.action_open()

    # --- drawing --------------------------------------------------------------------------------------

    def _run(self) -> RunDir | None:
        return next((line.run for line in self._shown if line.name == self._selected), None)

    def _delete(self, run: RunDir) -> None:
        try:
            run.delete()
        except UserError as error:
            self.notify(str(error), severity="warning")
            return
        except OSError as error:
            self.notify(f"{error.filename}: cannot be deleted: {error.strerror}", severity="error")
        else:
            self.notify(f"{run.name} is deleted")
        self._marked = [name for name in self._marked if name != run.name]
        self._looks.expire()
        if self.dashboard.feed is not None and self.dashboard.feed.run.path == run.path:
            self.dashboard.detach()

    def _fill(self) -> None:
        """Bring the table up to date; the selected run stays selected."""
        if self._index is None or not self.size.width:
            return
        words = self.query_one(FilterInput).value
        column = runstable.SORTABLE[self._sort]
        lines = runstable.arranged(self._index.runs, column, self._reverse, words)
        table = self.query_one(ListTable)
        columns = runstable.fitting(self.size.width - 1)
        if self._columns != columns:
            table.clear(columns=True)
            table.add_column("    state", width=runstable.LEAD_WIDTH, key="state")
            for found, width in columns:
                heading = Text(found.title, justify="left" if found.run.is_text else "right")
                table.add_column(heading, width=width, key=found.title)
            self._columns, self._cells = columns, {}
        self._shown = lines
        names = [line.name for line in lines]
        self._fill_rows(table, {line.name: self._row_of(line, columns) for line in lines})
        if self._selected not in names:
            self._selected = names[0] if names else None
        if self._selected is not None:
            table.move_cursor(row=names.index(self._selected))
        self._say_sorting(len(lines), column.title, words)
        self._draw_overlay()

    def _fill_rows(self, table: ListTable, rows: dict[str, list[Text]]) -> None:
        """The rows as they are now: all anew if others or in another order, else the cells that changed."""
        if list(rows) != list(self._cells):
            table.clear()
            for name, cells in rows.items():
                table.add_row(*cells, key=name)
        else:
            for name, cells in rows.items():
                for place, (new, old) in enumerate(zip(cells, self._cells[name], strict=True)):
                    if new != old:
                        table.update_cell_at(Coordinate(table.get_row_index(name), place), new)
        self._cells = rows

    def _row_of(self, line: RunSummary, columns: list[tuple[runstable.Column, int]]) -> list[Text]:
        letter = chr(ord("A") + self._marked.index(line.name)) if line.name in self._marked else None
        now = self.dashboard.now()
        cells = [runstable.cell(column, width, line, now, self.abilities) for column, width in columns]
        return [runstable.lead(line, letter, self.abilities, self.palette), *cells]

    def _say_sorting(self, count: int, title: str, words: str) -> None:
        is_descending = runstable.is_descending(runstable.SORTABLE[self._sort])
        order = self.abilities.mark("up" if self._reverse == is_descending else "down")
        total = len(self._index.runs) if self._index is not None else 0
        of = f"{count} of {total}" if words.strip() else str(total)
        what = f"{of} run{'' if total == 1 else 's'}, sorted by {title} {order}"
        if words.strip():
            what += f", filter: {words.strip()} (/ then esc: all)"
        elif total == 0:
            what = f"no runs yet; start one with: {command_line('train', 'RECIPE')}"
        # The folder comes last: a long one may be cut.
        self.query_one("#sorting", TextLine).show(f"{what}   in {self.dashboard.runs_dir}")

    def _draw_overlay(self) -> None:
        """The marked runs below the table; without marks the selected one. How the selected one ended."""
        line = next((line for line in self._shown if line.name == self._selected), None)
        ended = self.query_one("#ended", Static)
        ended.display = line is not None and bool(line.ended)
        if line is not None and line.ended:
            mark = self.abilities.mark(line.state)
            ended.update(Text(f"{mark} {line.name}: {printable(line.ended[0])} (R resumes it)"))
        names = self._marked or ([self._selected] if self._selected is not None else [])
        runs = {} if self._index is None else {line.name: line.run for line in self._index.runs}
        self.query_one(Overlay).show([runs[name] for name in names if name in runs])
