"""Judge: win rates with their intervals, categories, and every verdict with what the judge said."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Horizontal, VerticalScroll
from textual.widgets import Static

from localdpo.core.errors import UserError
from localdpo.core.text import printable
from localdpo.dashboard.evaluation_job import eval_command
from localdpo.dashboard.keymap import bindings_of
from localdpo.dashboard.screens.base import RunScreen
from localdpo.dashboard.widgets.difftext import clean, diff_text
from localdpo.dashboard.widgets.evaluating import Evaluating
from localdpo.dashboard.widgets.rates import Drawing, categories_text, metrics_text, rates_text
from localdpo.dashboard.widgets.table import ListTable
from localdpo.out.console import Text
from localdpo.records.evaluations import (
    Evaluation,
    JudgedDuel,
    JudgedPrompt,
    evaluation_files,
    read_evaluation,
)

if TYPE_CHECKING:
    from localdpo.dashboard.feed import RunFeed

_NARROW: Final = 70
_WIDE: Final = 110
_LOW: Final = 30
# Seconds between two looks for new evaluations.
_EVERY: Final = 1.0
# Columns of the list before the reason, with their padding, and those of the category.
_FIXED: Final = 36
_KIND: Final = 10
# What the list of verdicts can be narrowed to, in the order of the key.
FILTERS: Final = ("all", "lost", "tied", "flipped", "won", "none")
_OUTCOMES: Final = {"won": "up", "lost": "down", "tied": "tied", "none": "unknown"}


def passes(judged: JudgedPrompt, name: str) -> bool:
    """Whether a verdict belongs to the filter `name` of FILTERS."""
    return name == "all" or name == judged.outcome or (name == "flipped" and judged.flipped)


class JudgeScreen(RunScreen):
    """The evaluations of the run, the newest first; Enter opens the transcript of a verdict."""

    NAME = "judge"
    BINDINGS: ClassVar[list[BindingType]] = bindings_of("judge")

    def __init__(self) -> None:
        super().__init__()
        self._files: list[Path] = []
        self._place = 0
        self._found: Evaluation | None = None
        self._duel = 0
        self._filter = 0
        self._listed: list[JudgedPrompt] = []
        self._row = 0
        self._drawn: object = None
        self._looked = 0.0

    def body(self) -> ComposeResult:
        yield Static(id="judged")
        self._evaluating = Evaluating()
        yield self._evaluating
        with Horizontal(id="figures-of-judge"):
            for name in ("rates", "categories", "metrics"):
                with VerticalScroll(classes="panel", id=name, can_focus=False):
                    yield Static(id=f"{name}-text")
        yield Static(id="conclusion")
        yield Static(id="verdict-filter")
        yield ListTable(id="verdicts", cursor_type="row")
        with Container(id="transcript"):
            with VerticalScroll(classes="panel", id="verdict-prompt", can_focus=False):
                yield Static(id="verdict-prompt-text")
            with Horizontal(id="verdict-answers"):
                for side in ("first", "second"):
                    with VerticalScroll(classes="panel", id=f"{side}-answer", can_focus=False):
                        yield Static(id=f"{side}-answer-text")
            with VerticalScroll(classes="panel", id="opinions", can_focus=False):
                yield Static(id="opinions-text")

    def on_mount(self) -> None:
        super().on_mount()
        self.query_one(ListTable).focus()

    def reset(self) -> None:
        self._evaluating.stop()
        self._files, self._place, self._found, self._drawn = [], 0, None, None
        self._duel = self._filter = self._row = 0
        self.action_close()

    def show(self, feed: RunFeed) -> None:
        self._look()

    def tick(self, now: float) -> None:
        if self._evaluating.follow():
            self._place = 0
            self._look()
        if time.monotonic() - self._looked >= _EVERY:
            self._look()

    def on_resize(self) -> None:
        self.query_one("#verdict-answers").set_class(self.size.width < _NARROW, "-stacked")
        self._drawn = None
        self._draw()

    # --- keys -----------------------------------------------------------------------------------------

    def action_judge(self) -> None:
        """Evaluate the run, or ask whether to stop doing it."""
        if self.feed is not None:
            self._evaluating.ask(self.feed.run)

    def action_file(self, by: int) -> None:
        if self._files:
            self._place = min(max(self._place + by, 0), len(self._files) - 1)
            self._duel = self._row = 0
            self._look()

    def action_duel(self) -> None:
        if self._found is not None and self._found.duels:
            self._duel = (self._duel + 1) % len(self._found.duels)
            self._row = 0
            self._draw()

    def action_filter(self) -> None:
        self._filter = (self._filter + 1) % len(FILTERS)
        self._row = 0
        self._draw()

    def action_measured(self) -> None:
        """All measured figures in place of the verdicts, or the verdicts again."""
        self.action_close()
        self.query_one("#body").toggle_class("-measured")
        self._drawn = None
        self._draw()

    def action_open(self) -> None:
        if self._listed and not self.query_one("#body").has_class("-measured"):
            if self.query_one("#body").has_class("-open"):
                self.action_close()
            else:
                self.query_one("#body").add_class("-open")
                self._draw_transcript()

    def action_close(self) -> None:
        self.query_one("#body").remove_class("-open")
        self.query_one(ListTable).focus()

    def action_other(self, by: int) -> None:
        """The verdict before or after, in list and transcript alike."""
        if self._listed:
            row = min(max(self._row + by, 0), len(self._listed) - 1)
            self.query_one(ListTable).move_cursor(row=row)

    def on_data_table_row_highlighted(self, event: ListTable.RowHighlighted) -> None:
        if 0 <= event.cursor_row < len(self._listed):
            self._row = event.cursor_row
            self._draw_transcript()

    def on_data_table_row_selected(self) -> None:
        self.action_open()

    # --- drawing --------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Read the evaluation that is looked at, if it is new or changed."""
        self._looked = time.monotonic()
        if self.feed is None:
            return
        self._files = evaluation_files(self.feed.run)
        self._place = min(self._place, max(0, len(self._files) - 1))
        self._found, problem = None, ""
        if self._files:
            try:
                self._found = read_evaluation(self._files[self._place])
            except UserError as error:
                problem = str(error)
        else:
            problem = f"not evaluated yet; do it with r, or with: {eval_command(self.feed.run)}"
        self.query_one("#body").set_class(self._found is None, "-empty")
        if self._found is None:
            self.query_one("#judged", Static).update(Text(printable(problem)))
        self._draw()

    def _draw(self) -> None:
        found = self._found
        key = (found, self._place, len(self._files), self._duel, self._filter, self.palette, self.size)
        if found is None or key == self._drawn:
            return
        self._drawn = key
        self.query_one("#judged", Static).update(self._heading(found))
        body, duel = self.query_one("#body"), found.duels[self._duel] if found.duels else None
        body.set_class(duel is None, "-unjudged")
        body.set_class(duel is None or not duel.categories, "-one-kind")
        body.set_class(self.size.width < _WIDE, "-slim")
        body.set_class(self.size.height < _LOW, "-low")
        self._draw_figures(found, duel)
        self.query_one("#conclusion", Static).update(Text(printable(" ".join(found.conclusion))))
        self._list(found, duel)

    def _draw_figures(self, found: Evaluation, duel: JudgedDuel | None) -> None:
        """The panels of figures, all as high as the highest needs, within limits."""
        panels = 1 + (self.size.width >= _WIDE) + (duel is not None and bool(duel.categories))
        drawing = Drawing(self.palette, self.abilities, self.size.width // panels - 4)
        texts = (
            ("rates", "win rate, ties half, 95% interval", rates_text(found, self._duel, drawing)),
            ("categories", "by category", categories_text(duel, drawing)),
            ("metrics", "measured", metrics_text(found, drawing)),
        )
        for name, title, text in texts:
            self._panel(name, title, text)
        rows = max(text.plain.rstrip("\n").count("\n") + 1 for name, _, text in texts if name != "metrics")
        body, figures = self.query_one("#body"), self.query_one("#figures-of-judge")
        figures.styles.height = min(rows + 2, self.size.height * 2 // 5)
        if body.has_class("-measured") or duel is None:
            figures.styles.height = "1fr"

    def _panel(self, name: str, title: str, text: Text) -> None:
        self.query_one(f"#{name}").border_title = title
        self.query_one(f"#{name}-text", Static).update(text)

    def _heading(self, found: Evaluation) -> Text:
        judge = f"judge: {found.judge}" if found.judge is not None else "no judge"
        seed = f"temperature {found.sampling.get('temperature')} seed {found.sampling.get('seed')}"
        text = Text(printable(f"{judge}   {found.prompts} prompts of {found.source}   {seed}"))
        if len(self._files) > 1:
            text.append(f"   {found.name}: {self._place + 1} of {len(self._files)}", self.palette.muted)
        return text

    def _list(self, found: Evaluation, duel: JudgedDuel | None) -> None:
        """The verdicts of the duel that pass the filter."""
        table = self.query_one(ListTable)
        every = found.judged(duel) if duel is not None else []
        self._listed = [judged for judged in every if passes(judged, FILTERS[self._filter])]
        said = self.query_one("#verdict-filter", Static)
        if duel is not None:
            first, second = found.labels[duel.first], found.labels[duel.second]
            counts = ", ".join(
                f"{name} {sum(passes(judged, name) for judged in every)}" for name in FILTERS[1:-1]
            )
            said.update(
                Text(f"{first} vs {second}: {FILTERS[self._filter]} ({len(self._listed)})   {counts}")
            )
        row = min(self._row, max(0, len(self._listed) - 1))
        table.clear(columns=True)
        has_kinds = duel is not None and bool(duel.categories)
        width = max(10, self.size.width - _FIXED - (_KIND + 2 if has_kinds else 0))
        columns = {"prompt": 8, "category": _KIND, "verdict": 7, "orders": 9, "reason": width}
        if not has_kinds:
            del columns["category"]
        for heading, cells in columns.items():
            table.add_column(heading, width=cells)
        for one in self._listed:
            shown = self._cells(one, width)
            table.add_row(*(shown[heading] for heading in columns))
        table.move_cursor(row=row)
        self._row = row
        self._draw_transcript()

    def _cells(self, one: JudgedPrompt, width: int) -> dict[str, Text]:
        """The cells of a verdict by their headings."""
        tones = {"won": self.palette.chosen, "lost": self.palette.rejected}
        orders = "same text" if one.identical else "flipped" if one.flipped else "both"
        reason = next((each.reason for each in one.orders if each.reason), "")
        if not reason:
            reason = ", ".join(dict.fromkeys(each.status for each in one.orders if each.status != "ok"))
        verdict = f"{self.abilities.mark(_OUTCOMES[one.outcome])} {one.outcome}"
        return {
            "prompt": Text(printable(one.id)[:8], no_wrap=True),
            "category": Text(printable(one.category)[:_KIND], no_wrap=True),
            "verdict": Text(verdict, tones.get(one.outcome, self.palette.muted), no_wrap=True),
            "orders": Text(orders, no_wrap=True),
            "reason": Text(printable(reason)[:width], no_wrap=True),
        }

    def _draw_transcript(self) -> None:
        """The selected verdict: prompt, both answers with the words that differ, what the judge said."""
        found = self._found
        if found is None or not self._listed:
            return
        one, duel = self._listed[self._row], found.duels[self._duel]
        names = (found.labels[duel.first], found.labels[duel.second])
        self._panel("verdict-prompt", f"prompt {one.id}", Text(clean(one.prompt)))
        unicode, (new, old) = self.abilities.unicode, one.answers
        self._panel("first-answer", names[0], diff_text(old, new, "new", self.palette, unicode))
        self._panel("second-answer", names[1], diff_text(old, new, "old", self.palette, unicode))
        text = Text(f"{names[0]} {one.outcome} against {names[1]}", "bold")
        for place, opinion in enumerate(one.orders):
            shown = names if place == 0 else names[::-1]
            choice = {"first": shown[0], "second": shown[1], "tie": "a tie"}.get(
                opinion.choice, opinion.status
            )
            text.append(f"\n{shown[0]} shown first: {choice}", "bold")
            text.append(f"  {clean(opinion.reason)}", "")
        self._panel("opinions", "what the judge said", text)
