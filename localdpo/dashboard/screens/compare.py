"""Compare: the answers of base, SFT and trained adapter to the same prompts, and blind votes on them."""

from __future__ import annotations

from typing import Final

from textual.app import ComposeResult
from textual.containers import Container, Horizontal, Vertical
from textual.widgets import DataTable, Static

from localdpo.dashboard.compare_state import AnswersSource, CompareState, PromptView
from localdpo.dashboard.compare_texts import NO_ANSWERS, CompareTexts, titles
from localdpo.dashboard.feed import RunFeed
from localdpo.dashboard.screens.base import RunScreen
from localdpo.dashboard.widgets.answertext import prompt_view
from localdpo.dashboard.widgets.basic import ListTable, TextPanel
from localdpo.out.console import Text
from localdpo.records.verdicts import Choice

# Columns below which the list stands above the answers; rows below which only list and answers are shown.
_NARROW: Final = 100
_LOW: Final = 20
_LIST_WIDTH: Final = 32
# An answer's column below this width is not worth reading: one answer at a time then.
_LEAST_PANE: Final = 24


class CompareScreen(RunScreen):
    """Prompts at the left, their answers beside each other, words marked that differ.

    Without a request of the app the newest answers file is shown, and g generates answers to the run's
    held-out prompts.
    """

    NAME = "compare"
    CSS_PATH = "../styles/compare.tcss"

    def __init__(self) -> None:
        super().__init__()
        self._source: AnswersSource | None = None
        self._prompt = 0
        self._pane = 0
        self._full = False
        self._marked = True
        self._listed: tuple[int, ...] = ()
        self._rows: object = None

    def body(self) -> ComposeResult:
        yield Static(id="answers-status")
        yield Static(id="filters")
        with Container(id="compare"):
            yield ListTable(id="prompts", show_header=False, cursor_type="row")
            with Vertical(id="answers-side"):
                yield TextPanel("question")
                yield Static(id="tabs")
                yield Horizontal(id="panes")
        yield Static(id="figures")

    def on_mount(self) -> None:
        table = self.query_one(ListTable)
        table.add_columns("", "", "")
        table.focus()

    def on_unmount(self) -> None:
        if self._source is not None:
            self._source.stop()

    def reset(self) -> None:
        if self._source is not None:
            self._source.stop()
        self._source = self._rows = None
        self._prompt = self._pane = 0

    def show(self, feed: RunFeed) -> None:
        if self._source is None:
            self._source = AnswersSource(feed.run, self.dashboard.request)
            self._draw()

    def tick(self, now: float) -> None:
        if self._source is not None and self._source.poll():
            self._draw()

    def on_resize(self) -> None:
        self._draw()

    # --- keys -----------------------------------------------------------------------------------------

    def on_data_table_row_highlighted(self, event: DataTable.RowHighlighted) -> None:
        if event.cursor_row < len(self._listed) and self._listed[event.cursor_row] != self._prompt:
            self._prompt = self._listed[event.cursor_row]
            self._draw()

    def action_pane(self, by: int) -> None:
        view = self._view()
        if self._state is not None and view is not None:
            self._pane = (self._pane + by) % len(self._state.panes(view))
            self._draw()

    def action_full(self) -> None:
        self._full = not self._full
        self._draw()

    def action_diff(self) -> None:
        self._marked = not self._marked
        self._draw()

    def action_against(self) -> None:
        if self._state is not None:
            self._state.next_other()
            self._draw()

    def action_filter(self) -> None:
        if self._state is not None:
            self._state.next_filter()
            self._draw()

    def action_next(self) -> None:
        found = self._state.next_after(self._prompt) if self._state is not None else None
        if found is None:
            is_blind = self._state is not None and self._state.blind
            self.notify("every pair of answers has a vote" if is_blind else "no other answers differ")
            return
        self._prompt = found.index
        self._draw()

    def action_scroll(self, by: int) -> None:
        for panel in self.query_one("#panes").query(TextPanel):
            panel.scroll_pages(by)

    def action_blind(self) -> None:
        if self._state is not None:
            self._state.blind = not self._state.blind
            self._pane = 0
            self._draw()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """With the names shown 1 and 2 are the keys of screens, as everywhere."""
        if action == "vote" and parameters != ("tie",):
            return self._state is not None and self._state.blind
        return super().check_action(action, parameters)

    def action_vote(self, choice: Choice) -> None:
        state, view = self._state, self._view()
        if state is None or view is None:
            return
        if not state.blind:
            self.notify("press v first: it hides the names")
        elif not state.vote(view, choice, self.dashboard.now()):
            self.notify("there are no two different answers to vote on here")
        self._draw()

    def action_undo(self) -> None:
        state, view = self._state, self._view()
        if state is not None and view is not None:
            taken = state.undo(view)
            self.notify("no vote on this prompt" if taken is None else "vote undone")
            self._draw()

    def action_generate(self, next_seed: bool) -> None:
        if self._source is not None:
            self._say(self._source.again(next_seed))

    def action_file(self) -> None:
        if self._source is not None:
            self._say(self._source.next_file())

    def _say(self, refusal: str | None) -> None:
        if refusal is not None:
            self.notify(refusal, severity="warning")
        self._draw()

    # --- drawing --------------------------------------------------------------------------------------

    @property
    def _state(self) -> CompareState | None:
        return self._source.state if self._source is not None else None

    def _view(self) -> PromptView | None:
        """The prompt that is looked at, if the filter keeps it."""
        views = self._state.visible() if self._state is not None else []
        return next((view for view in views if view.index == self._prompt), None)

    def _draw(self) -> None:
        if not self._is_ready or self._source is None:
            return
        state, is_low = self._state, self.size.height < _LOW
        self.query_one("#compare").set_class(self.size.width < _NARROW, "-stacked").set_class(is_low, "-low")
        self.query_one("#compare").display = state is not None
        for id in ("#filters", "#figures", "#question"):
            self.query_one(id).display = state is not None and not is_low
        self.query_one("#answers-status", Static).update(self._status())
        if state is None:
            return
        texts = self._texts(state)
        self.query_one("#filters", Static).update(texts.filters())
        self._draw_list(state, texts)
        view = self._view()
        self.query_one("#answers-side").display = view is not None
        if view is None:
            self.query_one("#figures", Static).update("no prompt passes this filter: f chooses the next")
            return
        shown = prompt_view(view.text, self.palette)
        self.query_one("#question", TextPanel).show(shown, f"prompt {view.index + 1}")
        self.query_one("#figures", Static).update(texts.figures(view))
        self._draw_panes(state, texts, view)

    def _status(self) -> Text:
        """The state of the answers file, or why there is none."""
        source = self._source
        if source is not None and source.problem is not None:
            mark = self.abilities.mark("critical")
            return Text(f"{mark} {source.problem}", self.palette.critical, no_wrap=True, overflow="ellipsis")
        if self._state is None:
            is_loading = source is not None and source.generating
            return Text("loading the model" if is_loading else NO_ANSWERS, self.palette.muted)
        return self._texts(self._state).status()

    def _texts(self, state: CompareState) -> CompareTexts:
        generating = self._source is not None and self._source.generating
        return CompareTexts(state, self.palette, self.abilities, generating, self._marked)

    def _draw_list(self, state: CompareState, texts: CompareTexts) -> None:
        """The prompts that the filter keeps, with marks; the cursor stays on the prompt."""
        views = state.visible()
        self._listed = tuple(view.index for view in views)
        if views and self._prompt not in self._listed:
            self._prompt = next((index for index in self._listed if index > self._prompt), self._listed[-1])
        names = zip(views, titles(views), strict=True)
        rows = [(str(view.index + 1), texts.mark(view), title) for view, title in names]
        table = self.query_one(ListTable)
        with self.prevent(DataTable.RowHighlighted):
            if rows != self._rows:
                self._rows = rows
                table.clear()
                for number, mark, title in rows:
                    table.add_row(Text(number, self.palette.muted, justify="right"), Text(mark), Text(title))
            if self._prompt in self._listed:
                table.move_cursor(row=self._listed.index(self._prompt))

    def _draw_panes(self, state: CompareState, texts: CompareTexts, view: PromptView) -> None:
        names = state.panes(view)
        self._pane = min(self._pane, len(names) - 1)
        parent = self.query_one("#panes")
        panels = list(parent.query(TextPanel))
        more = [TextPanel(f"pane-{index}") for index in range(len(panels), len(names))]
        parent.mount(*more)
        panels += more
        room = self.size.width - (0 if self.size.width < _NARROW else _LIST_WIDTH)
        is_single = self._full or room // len(names) < _LEAST_PANE
        for index, panel in enumerate(panels):
            panel.display = index < len(names) and (not is_single or index == self._pane)
            panel.set_class(index == self._pane and not is_single, "-here")
            if index < len(names):
                width = room if is_single else room // len(names)
                panel.show(*texts.pane(view, names[index], index, width))
        tabs = self.query_one("#tabs", Static)
        tabs.display = is_single
        tabs.update(texts.tabs(view, names, self._pane))
