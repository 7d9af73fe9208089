"""Judge: win rates with their intervals, categories, and each verdict with the judge's reasons."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from textual.app import ComposeResult
from textual.containers import Container, Horizontal
from textual.widgets import Static

from localdpo.core.errors import UserError
from localdpo.core.text import counted, printable
from localdpo.dashboard.feed import Interval, RunFeed
from localdpo.dashboard.screens.base import DetailScreen
from localdpo.dashboard.widgets.answertext import clean, diff_text, prompt_view
from localdpo.dashboard.widgets.basic import ListTable, TextPanel
from localdpo.dashboard.widgets.evaluation import (
    EvaluationLine,
    RatesStyle,
    categories_text,
    eval_command,
    metrics_text,
    rates_text,
)
from localdpo.out.console import Text
from localdpo.records.evaluations import (
    EvaluatedRow,
    Evaluation,
    JudgedDuel,
    JudgedPair,
    evaluation_files,
    read_evaluation,
)

_NARROW: Final = 70
_WIDE: Final = 110
_LOW: Final = 30
# Between two looks for new evaluations.
_LOOK_SECONDS: Final = 1.0
# Cells of the list's columns before the reason, with their padding, and of the category.
_FIXED: Final = 36
_CATEGORY: Final = 10
# What the list of verdicts can be narrowed to, in the order of the key.
FILTERS: Final = ("all", "lost", "tied", "flipped", "won", "none")
_OUTCOMES: Final = {"won": "up", "lost": "down", "tied": "tied", "none": "unknown"}


def passes(verdict: JudgedPair, name: str) -> bool:
    """Whether a verdict belongs to the filter `name` of FILTERS."""
    return name == "all" or name == verdict.outcome or (name == "flipped" and verdict.flipped)


class JudgeScreen(DetailScreen):
    """The evaluations of the run, the newest first; Enter opens the transcript of a verdict."""

    NAME = "judge"

    def __init__(self) -> None:
        super().__init__()
        self._files: list[Path] = []
        self._file = 0
        self._evaluation: Evaluation | None = None
        self._duel = 0
        self._filter = 0
        self._listed: list[tuple[EvaluatedRow, JudgedPair]] = []
        self._row = 0
        self._drawn: object = None
        self._looks = Interval(_LOOK_SECONDS)

    def body(self) -> ComposeResult:
        yield Static(id="judged")
        self._evaluation_line = EvaluationLine()
        yield self._evaluation_line
        with Horizontal(id="figures-of-judge"):
            yield TextPanel("rates")
            yield TextPanel("categories")
            yield TextPanel("metrics")
        yield Static(id="conclusion")
        yield Static(id="verdict-filter")
        yield ListTable(id="verdicts", cursor_type="row")
        with Container(id="transcript"):
            yield TextPanel("verdict-prompt")
            with Horizontal(id="verdict-answers"):
                yield TextPanel("first-answer")
                yield TextPanel("second-answer")
            yield TextPanel("opinions")

    def reset(self) -> None:
        self._evaluation_line.stop()
        self._files, self._file, self._evaluation, self._drawn = [], 0, None, None
        self._duel = self._filter = self._row = 0
        self.action_close()

    def show(self, feed: RunFeed) -> None:
        self._look()

    def tick(self, now: float) -> None:
        if self._evaluation_line.follow():
            self._file = 0
            self._look()
        if self._looks.has_passed:
            self._look()

    def on_resize(self) -> None:
        self.query_one("#verdict-answers").set_class(self.size.width < _NARROW, "-stacked")
        self._drawn = None
        self._draw()

    # --- keys -----------------------------------------------------------------------------------------

    def action_judge(self) -> None:
        """Evaluate the run, or ask whether to stop doing it."""
        if self.feed is not None:
            self._evaluation_line.ask(self.feed.run)

    def action_file(self, by: int) -> None:
        if self._files:
            self._file = min(max(self._file + by, 0), len(self._files) - 1)
            self._duel = self._row = 0
            self._look()

    def action_duel(self) -> None:
        if self._evaluation is not None and self._evaluation.duels:
            self._duel = (self._duel + 1) % len(self._evaluation.duels)
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

    def on_data_table_row_highlighted(self, event: ListTable.RowHighlighted) -> None:
        if 0 <= event.cursor_row < len(self._listed):
            self._row = event.cursor_row
            self._draw_transcript()

    # --- drawing --------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Read the evaluation that is looked at, if it is new or changed."""
        self._looks.restart()
        if self.feed is None:
            return
        self._files = evaluation_files(self.feed.run)
        self._file = min(self._file, max(0, len(self._files) - 1))
        self._evaluation, problem = None, ""
        if self._files:
            try:
                self._evaluation = read_evaluation(self._files[self._file])
            except UserError as error:
                problem = str(error)
        else:
            problem = f"not evaluated yet: press r, or run: {eval_command(self.feed.run)}"
        self.query_one("#body").set_class(self._evaluation is None, "-empty")
        if self._evaluation is None:
            self.query_one("#judged", Static).update(Text(printable(problem)))
        self._draw()

    def _draw(self) -> None:
        evaluation = self._evaluation
        key = (evaluation, self._file, len(self._files), self._duel, self._filter, self.palette, self.size)
        if evaluation is None or key == self._drawn:
            return
        self._drawn = key
        self.query_one("#judged", Static).update(self._heading(evaluation))
        body, duel = self.query_one("#body"), evaluation.duels[self._duel] if evaluation.duels else None
        body.set_class(duel is None, "-unjudged")
        body.set_class(duel is None or not duel.categories, "-one-category")
        body.set_class(self.size.width < _WIDE, "-slim")
        body.set_class(self.size.height < _LOW, "-low")
        self._draw_figures(evaluation, duel)
        self.query_one("#conclusion", Static).update(Text(printable(" ".join(evaluation.conclusion))))
        self._list(evaluation, duel)

    def _draw_figures(self, evaluation: Evaluation, duel: JudgedDuel | None) -> None:
        """The panels of figures, all as high as the highest needs, within limits."""
        panels = 1 + (self.size.width >= _WIDE) + (duel is not None and bool(duel.categories))
        style = RatesStyle(self.palette, self.abilities, self.size.width // panels - 4)
        texts = (
            ("rates", "win rate, ties half, 95% interval", rates_text(evaluation, self._duel, style)),
            ("categories", "by category", categories_text(duel, style)),
            ("metrics", "measured", metrics_text(evaluation, style)),
        )
        for name, title, text in texts:
            self.query_one(f"#{name}", TextPanel).show(text, title)
        rows = max(text.plain.rstrip("\n").count("\n") + 1 for name, _, text in texts if name != "metrics")
        body, figures = self.query_one("#body"), self.query_one("#figures-of-judge")
        figures.styles.height = min(rows + 2, self.size.height * 2 // 5)
        if body.has_class("-measured") or duel is None:
            figures.styles.height = "1fr"

    def _heading(self, evaluation: Evaluation) -> Text:
        judge = f"judge: {evaluation.judge}" if evaluation.judge is not None else "no judge"
        seed = f"temperature {evaluation.sampling.get('temperature')} seed {evaluation.sampling.get('seed')}"
        text = Text(
            printable(f"{judge}   {counted(evaluation.prompts, 'prompt')} of {evaluation.source}   {seed}")
        )
        if len(self._files) > 1:
            text.append(f"   {evaluation.name}: {self._file + 1} of {len(self._files)}", self.palette.muted)
        return text

    def _list(self, evaluation: Evaluation, duel: JudgedDuel | None) -> None:
        """The verdicts of the duel that pass the filter."""
        table = self.query_one(ListTable)
        judged = evaluation.judged(duel) if duel is not None else []
        self._listed = [entry for entry in judged if passes(entry[1], FILTERS[self._filter])]
        line = self.query_one("#verdict-filter", Static)
        if duel is not None:
            first, second = evaluation.labels[duel.first], evaluation.labels[duel.second]
            counts = ", ".join(
                f"{name} {sum(passes(verdict, name) for _, verdict in judged)}" for name in FILTERS[1:-1]
            )
            line.update(
                Text(f"{first} vs {second}: {FILTERS[self._filter]} ({len(self._listed)})   {counts}")
            )
        row = min(self._row, max(0, len(self._listed) - 1))
        table.clear(columns=True)
        has_categories = duel is not None and bool(duel.categories)
        width = max(10, self.size.width - _FIXED - (_CATEGORY + 2 if has_categories else 0))
        columns = {"prompt": 8, "category": _CATEGORY, "verdict": 7, "orders": 9, "reason": width}
        if not has_categories:
            del columns["category"]
        for heading, cells in columns.items():
            table.add_column(heading, width=cells)
        for prompt, verdict in self._listed:
            shown = self._cells(prompt, verdict, width)
            table.add_row(*(shown[heading] for heading in columns))
        table.move_cursor(row=row)
        self._row = row
        self._draw_transcript()

    def _cells(self, row: EvaluatedRow, judged: JudgedPair, width: int) -> dict[str, Text]:
        """The cells of a verdict by their headings."""
        tones = {"won": self.palette.chosen, "lost": self.palette.rejected}
        orders = "same text" if judged.identical else "flipped" if judged.flipped else "both"
        reason = next((opinion.reason for opinion in judged.orders if opinion.reason), "")
        if not reason:
            reason = ", ".join(
                dict.fromkeys(opinion.status for opinion in judged.orders if opinion.status != "ok")
            )
        verdict = f"{self.abilities.mark(_OUTCOMES[judged.outcome])} {judged.outcome}"
        return {
            "prompt": Text(printable(row.id)[:8], no_wrap=True),
            "category": Text(printable(row.category or "")[:_CATEGORY], no_wrap=True),
            "verdict": Text(verdict, tones.get(judged.outcome, self.palette.muted), no_wrap=True),
            "orders": Text(orders, no_wrap=True),
            "reason": Text(printable(reason)[:width], no_wrap=True),
        }

    def _draw_transcript(self) -> None:
        """The selected verdict: prompt, both answers with the words that differ, the judge's reasons."""
        evaluation = self._evaluation
        if evaluation is None or not self._listed:
            return
        (row, verdict), duel = self._listed[self._row], evaluation.duels[self._duel]
        names = (evaluation.labels[duel.first], evaluation.labels[duel.second])
        new, old = row.answers[duel.first].text, row.answers[duel.second].text
        panels = {
            "verdict-prompt": (prompt_view(row.prompt, self.palette), f"prompt {row.id}"),
            "first-answer": (diff_text(old, new, "new", self.palette, self.abilities), names[0]),
            "second-answer": (diff_text(old, new, "old", self.palette, self.abilities), names[1]),
            "opinions": (self._opinions(verdict, names), "the judge's reasons"),
        }
        for id, (text, title) in panels.items():
            self.query_one(f"#{id}", TextPanel).show(text, title)

    def _opinions(self, verdict: JudgedPair, names: tuple[str, str]) -> Text:
        """The judge's choice and reason in each order; `names`: of the two models."""
        text = Text(f"{names[0]} {verdict.outcome} against {names[1]}", "bold")
        for number, opinion in enumerate(verdict.orders):
            shown = names if number == 0 else names[::-1]
            choices = {"first": shown[0], "second": shown[1], "tie": "a tie"}
            choice = choices.get(opinion.choice or "", opinion.status)
            text.append(f"\n{shown[0]} shown first: {choice}", "bold")
            text.append(f"  {clean(opinion.reason or '')}", "")
        return text
