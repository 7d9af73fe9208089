"""Pairs: those that the policy ranks worst, and which tokens of their responses were rewarded."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, VerticalScroll
from textual.widgets import Static

from localdpo.core.errors import UserError
from localdpo.core.text import printable
from localdpo.dashboard.keymap import bindings_of
from localdpo.dashboard.screens.base import RunScreen
from localdpo.dashboard.widgets.difftext import clean
from localdpo.dashboard.widgets.slider import StepSlider, Walk
from localdpo.dashboard.widgets.table import ListTable
from localdpo.dashboard.widgets.tokens import View, legend, scale_of, signed, tokens_text
from localdpo.out.console import Text
from localdpo.records.pairs import PairsRecord, RewardedResponse, WorstPair, read_pairs

if TYPE_CHECKING:
    from localdpo.dashboard.feed import RunFeed

_NARROW: Final = 70
_LOW: Final = 30
# Columns of the list besides the two texts, with their padding.
_FIXED: Final = 26


class PairsScreen(RunScreen):
    """A list of pairs with the selected one below it; Enter gives the pair the whole screen."""

    NAME = "pairs"
    BINDINGS: ClassVar[list[BindingType]] = bindings_of("pairs")

    def __init__(self) -> None:
        super().__init__()
        self._walk = Walk()
        self._numbers = False
        self._found: PairsRecord | None = None
        self._listed: object = None
        self._selected: str | None = None

    def body(self) -> ComposeResult:
        yield StepSlider("pairs")
        yield Static(id="problem")
        yield ListTable(id="list", cursor_type="row")
        with VerticalScroll(classes="panel", id="pair-prompt", can_focus=False):
            yield Static(id="pair-prompt-text")
        with Container(id="responses"):
            for side in ("chosen", "rejected"):
                with VerticalScroll(classes="panel", id=side, can_focus=False):
                    yield Static(id=f"{side}-text")
        yield Static(id="legend")

    def on_mount(self) -> None:
        self.query_one(ListTable).focus()

    def reset(self) -> None:
        self._walk = Walk()
        self._found, self._listed, self._selected = None, None, None
        self.action_close()

    def show(self, feed: RunFeed) -> None:
        self._walk.extend([entry.step for entry in feed.state.pairs])
        self._load()

    def on_resize(self) -> None:
        self.query_one("#responses").set_class(self.size.width < _NARROW, "-stacked")
        self.query_one("#body").set_class(self.size.height < _LOW, "-low")
        self._listed = None
        self._list()

    # --- keys -----------------------------------------------------------------------------------------

    def action_step(self, by: int) -> None:
        self._walk.move(by)
        self._load()

    def action_first(self) -> None:
        self._walk.to(0)
        self._load()

    def action_last(self) -> None:
        self._walk.newest()
        self._load()

    def action_open(self) -> None:
        """The pair alone on the screen, or the list again."""
        if self.query_one("#body").has_class("-open"):
            self.action_close()
        elif self._pair() is not None:
            self.query_one("#body").add_class("-open")

    def action_close(self) -> None:
        self.query_one("#body").remove_class("-open")
        self.query_one(ListTable).focus()

    def action_other(self, by: int) -> None:
        """The pair before or after, where the list is hidden and has no keys of its own."""
        table = self.query_one(ListTable)
        if table.row_count:
            table.move_cursor(row=min(max(table.cursor_row + by, 0), table.row_count - 1))

    def action_numbers(self) -> None:
        self._numbers = not self._numbers
        self._draw()

    def action_scroll(self, by: int) -> None:
        for side in ("#chosen", "#rejected"):
            pane = self.query_one(side)
            pane.scroll_relative(y=by * max(1, pane.size.height - 1), animate=False)

    def on_step_slider_moved(self, event: StepSlider.Moved) -> None:
        self._walk.to(event.index)
        self._load()

    def on_data_table_row_highlighted(self, event: ListTable.RowHighlighted) -> None:
        if event.row_key.value is not None:
            self._selected = event.row_key.value
            self._draw()

    def on_data_table_row_selected(self) -> None:
        self.action_open()

    # --- drawing --------------------------------------------------------------------------------------

    def _pair(self) -> WorstPair | None:
        pairs = self._found.pairs if self._found is not None else ()
        return next((pair for pair in pairs if pair.key == self._selected), pairs[0] if pairs else None)

    def _load(self) -> None:
        """Read the file of the step that is looked at and draw it."""
        index, self._found, problem = self._walk.index, None, ""
        if index is not None and self.feed is not None:
            try:
                self._found = read_pairs(self.feed.run, self.feed.state.pairs[index].path)
            except UserError as error:
                problem = str(error)
        # The list's numbers are of one data set, as a rule; the pair's own is above its prompt.
        note = self._one_source()
        self.query_one(StepSlider).show(self._walk, note)
        said = self.query_one("#problem", Static)
        said.display = bool(problem)
        said.update(Text(printable(problem), style=self.palette.critical))
        self._list()
        self._draw()

    def _one_source(self) -> str:
        """The data set of all pairs in the list; nothing where there are several."""
        sources = {pair.source for pair in self._found.pairs} if self._found is not None else set()
        return sources.pop() if len(sources) == 1 else ""

    def _list(self) -> None:
        """Fill the list, unless it shows these pairs already; the selected pair stays selected."""
        table = self.query_one(ListTable)
        key = (self._found, self.size.width, self.palette)
        if self._found is None or key == self._listed:
            return
        self._listed, selected = key, self._selected
        table.clear(columns=True)
        width = max(12, (self.size.width - _FIXED) // 2)
        for heading, columns in (("row", 6), ("margin", 8), ("chosen", width), ("rejected", width)):
            table.add_column(heading, width=columns)
        for pair in self._found.pairs:
            table.add_row(*self._cells(pair, width), key=pair.key)
        rows = [pair.key for pair in self._found.pairs]
        table.styles.height = len(rows) + 1
        table.move_cursor(row=rows.index(selected) if selected in rows else 0)

    def _cells(self, pair: WorstPair, width: int) -> list[Text]:
        mark = "down" if pair.margin < 0 else "up" if pair.margin > 0 else "level"
        style = self.palette.rejected if pair.margin < 0 else self.palette.chosen if pair.margin > 0 else ""
        margin = Text(f"{signed(pair.margin)}{self.abilities.mark(mark)}", style=style, justify="right")
        # The responses often begin alike: the list shows where they part.
        start = parting(pair.chosen.text, pair.rejected.text)
        texts = [beginning(response.text, start, width) for response in (pair.chosen, pair.rejected)]
        return [Text(str(pair.row), justify="right"), margin, *map(Text, texts)]

    def _draw(self) -> None:
        """The selected pair, token by token."""
        pair = self._pair()
        self.query_one("#body").set_class(pair is None, "-empty")
        if pair is None:
            return
        prompt = self.query_one("#pair-prompt")
        of = "" if self._one_source() else f" of {pair.source}"
        prompt.border_title = Text(f"row {pair.row}{printable(of)}: prompt")
        prompt.border_subtitle = f"margin {signed(pair.margin)}"
        self.query_one("#pair-prompt-text", Static).update(Text(clean(pair.prompt)))
        limit = scale_of(pair.chosen.tokens, pair.rejected.tokens)
        view = View(limit, self._numbers, self.palette, self.abilities)
        for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            self._draw_response(name, response, view)
        self.query_one("#legend", Static).update(legend(view))

    def _draw_response(self, name: str, response: RewardedResponse, view: View) -> None:
        panel = self.query_one(f"#{name}")
        panel.border_title = name
        panel.border_subtitle = f"reward {signed(response.reward)}, {len(response.tokens)} tokens"
        self.query_one(f"#{name}-text", Static).update(tokens_text(response.tokens, view))


def parting(one: str, other: str) -> int:
    """Where two texts begin to differ, gone back to the start of that word."""
    place = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        place += 1
    return one.rfind(" ", 0, place) + 1 if place else 0


def beginning(text: str, start: int, width: int) -> str:
    """`text` on one line of `width` columns, shown from near `start` where that lies beyond the width."""
    line = printable(text)
    if start > width // 2:
        line = "…" + line[line.find(" ", max(0, start - width // 3)) + 1 :]
    return line if len(line) <= width else f"{line[: width - 1]}…"
