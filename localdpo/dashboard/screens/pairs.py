"""Pairs: those that the policy ranks worst, and which tokens of their responses were rewarded."""

from __future__ import annotations

from typing import Final

from textual.app import ComposeResult
from textual.containers import Container
from textual.widgets import Static

from localdpo.core.errors import UserError
from localdpo.core.text import common_prefix, counted, printable
from localdpo.dashboard.feed import RunFeed
from localdpo.dashboard.screens.base import DetailScreen, StepScreen
from localdpo.dashboard.widgets import answertext
from localdpo.dashboard.widgets.basic import ListTable, StepSlider, TextPanel
from localdpo.out.console import Text
from localdpo.records.pairs import PairsRecord, WorstPair, read_pairs

_NARROW: Final = 70
_LOW: Final = 30
# Columns of the list besides the two texts, with their padding.
_FIXED: Final = 26


class PairsScreen(StepScreen, DetailScreen):
    """A list of pairs with the selected one below it; Enter gives the pair the whole screen."""

    NAME = "pairs"

    def __init__(self) -> None:
        super().__init__()
        self._as_numbers = False
        self._pairs: PairsRecord | None = None
        self._listed: object = None
        self._selected: str | None = None

    def body(self) -> ComposeResult:
        yield StepSlider()
        yield Static(id="problem")
        yield ListTable(id="list", cursor_type="row")
        yield TextPanel("pair-prompt")
        with Container(id="responses"):
            yield TextPanel("chosen")
            yield TextPanel("rejected")
        yield Static(id="legend")

    def reset(self) -> None:
        super().reset()
        self._pairs, self._listed, self._selected = None, None, None
        self.action_close()

    def show(self, feed: RunFeed) -> None:
        self._walk.extend([step for step, _ in feed.state.pairs])
        self.show_step()

    def on_resize(self) -> None:
        self.query_one("#responses").set_class(self.size.width < _NARROW, "-stacked")
        self.query_one("#body").set_class(self.size.height < _LOW, "-low")
        self._listed = None
        self._list()

    # --- keys -----------------------------------------------------------------------------------------

    def action_open(self) -> None:
        """The pair alone on the screen, or the list again."""
        if self.query_one("#body").has_class("-open"):
            self.action_close()
        elif self._shown_pair() is not None:
            self.query_one("#body").add_class("-open")

    def action_numbers(self) -> None:
        self._as_numbers = not self._as_numbers
        self._draw()

    def action_scroll(self, by: int) -> None:
        for side in ("#chosen", "#rejected"):
            self.query_one(side, TextPanel).scroll_pages(by)

    def on_data_table_row_highlighted(self, event: ListTable.RowHighlighted) -> None:
        if event.row_key.value is not None:
            self._selected = event.row_key.value
            self._draw()

    # --- drawing --------------------------------------------------------------------------------------

    def _shown_pair(self) -> WorstPair | None:
        pairs = self._pairs.pairs if self._pairs is not None else ()
        return next((pair for pair in pairs if pair.key == self._selected), pairs[0] if pairs else None)

    def show_step(self) -> None:
        """Read the file of the step that is looked at and draw it."""
        index, self._pairs, problem = self._walk.index, None, ""
        if index is not None and self.feed is not None:
            try:
                self._pairs = read_pairs(self.feed.run, self.feed.state.pairs[index][1])
            except UserError as error:
                problem = str(error)
        # The list's numbers are of one data set, as a rule; the pair's own is above its prompt.
        self.show_slider(self._one_source())
        line = self.query_one("#problem", Static)
        line.display = bool(problem)
        line.update(Text(printable(problem), style=self.palette.critical))
        self._list()
        self._draw()

    def _one_source(self) -> str:
        """The data set of all pairs in the list; nothing where there are several."""
        sources = {pair.source for pair in self._pairs.pairs} if self._pairs is not None else set()
        return sources.pop() if len(sources) == 1 else ""

    def _list(self) -> None:
        """Fill the list, unless it shows these pairs already; the selected pair stays selected."""
        table = self.query_one(ListTable)
        key = (self._pairs, self.size.width, self.palette)
        if self._pairs is None or key == self._listed:
            return
        self._listed, selected = key, self._selected
        table.clear(columns=True)
        width = max(12, (self.size.width - _FIXED) // 2)
        for heading, columns in (("row", 6), ("margin", 8), ("chosen", width), ("rejected", width)):
            table.add_column(heading, width=columns)
        for pair in self._pairs.pairs:
            table.add_row(*self._cells(pair, width), key=pair.key)
        rows = [pair.key for pair in self._pairs.pairs]
        table.styles.height = len(rows) + 1
        table.move_cursor(row=rows.index(selected) if selected in rows else 0)

    def _cells(self, pair: WorstPair, width: int) -> list[Text]:
        mark = "down" if pair.margin < 0 else "up" if pair.margin > 0 else "level"
        style = self.palette.rejected if pair.margin < 0 else self.palette.chosen if pair.margin > 0 else ""
        margin = Text(
            f"{answertext.signed(pair.margin)}{self.abilities.mark(mark)}", style=style, justify="right"
        )
        # The responses often begin alike: the list shows where they part.
        start = parting(pair.chosen.text, pair.rejected.text)
        texts = [beginning(response.text, start, width) for response in (pair.chosen, pair.rejected)]
        return [Text(str(pair.row), justify="right"), margin, *map(Text, texts)]

    def _draw(self) -> None:
        """The selected pair, token by token."""
        pair = self._shown_pair()
        self.query_one("#body").set_class(pair is None, "-empty")
        if pair is None:
            return
        of = "" if self._one_source() else f" of {pair.source}"
        self.query_one("#pair-prompt", TextPanel).show(
            answertext.prompt_view(pair.prompt, self.palette),
            f"row {pair.row}{of}: prompt",
            f"margin {answertext.signed(pair.margin)}",
        )
        limit = answertext.scale_of(pair.chosen.tokens, pair.rejected.tokens)
        tinting = answertext.Tinting(limit, self._as_numbers, self.palette, self.abilities)
        for name, response in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            self.query_one(f"#{name}", TextPanel).show(
                answertext.tokens_text(response.tokens, tinting),
                name,
                f"reward {answertext.signed(response.reward)}, {counted(len(response.tokens), 'token')}",
            )
        self.query_one("#legend", Static).update(answertext.tints_legend(tinting))


def parting(chosen: str, rejected: str) -> int:
    """The index of the first word in which two texts differ."""
    return chosen.rfind(" ", 0, len(common_prefix([chosen, rejected]))) + 1


def beginning(text: str, start: int, width: int) -> str:
    """`text` on one line of `width` columns, shown from near `start` where that lies beyond the width."""
    line = printable(text)
    if start > width // 2:
        line = "…" + line[line.find(" ", max(0, start - width // 3)) + 1 :]
    return line if len(line) <= width else f"{line[: width - 1]}…"
