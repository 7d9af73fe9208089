"""Samples: how the answers to the watched prompts change from one evaluation to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, VerticalScroll
from textual.widgets import Static

from localdpo.core.text import count_words, printable, word_diff
from localdpo.dashboard.keymap import bindings_of
from localdpo.dashboard.screens.base import RunScreen
from localdpo.dashboard.widgets.difftext import clean, diff_text
from localdpo.dashboard.widgets.slider import StepSlider, Walk
from localdpo.out.console import Text

if TYPE_CHECKING:
    from localdpo.dashboard.feed import RunFeed
    from localdpo.dashboard.state import Sample

# What the answer is compared with, in the order of the key.
AGAINST: Final = ("reference", "evaluation before", "nothing")
_NARROW: Final = 70
_LOW: Final = 28
# Evaluations that the history shows at once.
_HISTORY: Final = 8


class SamplesScreen(RunScreen):
    """Reference and policy side by side with the words marked that differ; a slider over the evaluations."""

    NAME = "samples"
    BINDINGS: ClassVar[list[BindingType]] = bindings_of("samples")

    def __init__(self) -> None:
        super().__init__()
        self._walk = Walk()
        self._prompt = 0
        self._against = 0
        self._drawn: object = None

    def body(self) -> ComposeResult:
        yield StepSlider("samples")
        with VerticalScroll(classes="panel", id="prompt", can_focus=False):
            yield Static(id="prompt-text")
        with Container(id="answers"):
            for side in ("before", "now"):
                with VerticalScroll(classes="panel", id=side, can_focus=False):
                    yield Static(id=f"{side}-text")
        yield Static(classes="panel", id="history")

    def reset(self) -> None:
        self._walk = Walk()
        self._prompt = 0
        self._drawn = None

    def show(self, feed: RunFeed) -> None:
        self._walk.extend([entry.step for entry in feed.state.samples])
        self._draw()

    def on_resize(self) -> None:
        self.query_one("#answers").set_class(self.size.width < _NARROW, "-stacked")
        self.query_one("#body").set_class(self.size.height < _LOW, "-low")
        self._drawn = None
        self._draw()

    # --- keys -----------------------------------------------------------------------------------------

    def action_step(self, by: int) -> None:
        self._walk.move(by)
        self._draw()

    def action_first(self) -> None:
        self._walk.to(0)
        self._draw()

    def action_last(self) -> None:
        self._walk.newest()
        self._draw()

    def action_prompt(self, by: int) -> None:
        count = len(self._samples())
        if count:
            self._prompt = (self._prompt + by) % count
            self._draw()

    def action_against(self) -> None:
        self._against = (self._against + 1) % len(AGAINST)
        self._draw()

    def action_scroll(self, by: int) -> None:
        for side in ("#before", "#now"):
            pane = self.query_one(side)
            pane.scroll_relative(y=by * max(1, pane.size.height - 1), animate=False)

    def on_step_slider_moved(self, event: StepSlider.Moved) -> None:
        self._walk.to(event.index)
        self._draw()

    # --- drawing --------------------------------------------------------------------------------------

    def _samples(self) -> tuple[Sample, ...]:
        """Those of the evaluation that is looked at."""
        if self.feed is None or self._walk.index is None:
            return ()
        return self.feed.state.samples[self._walk.index].samples

    def _draw(self) -> None:
        samples = self._samples()
        place = min(self._prompt, len(samples) - 1)
        self.query_one("#body").set_class(not samples, "-empty")
        if not samples:
            self.query_one(StepSlider).show(self._walk)
            return
        sample = samples[place]
        name, old = self._other(sample, place)
        key = (sample, name, old, place, len(samples), self._walk.steps[-1], self._walk.step, self.palette)
        if key == self._drawn:
            return
        self._drawn = key
        pieces = word_diff(old, sample.policy) if old is not None else []
        changed = f"{count_words(pieces, 'new')} words new, {count_words(pieces, 'old')} gone"
        note = f"against {name}: {changed}" if old is not None else ""
        self.query_one(StepSlider).show(self._walk, note)
        self.query_one("#prompt").border_title = f"prompt {place + 1} of {len(samples)}"
        self.query_one("#prompt-text", Static).update(Text(clean(sample.prompt)))
        self._draw_answers(sample, name, old)
        history = self.query_one("#history", Static)
        history.border_title = "this prompt at every evaluation, against the reference"
        history.update(self._history(place))

    def _draw_answers(self, sample: Sample, name: str, old: str | None) -> None:
        before, now = self.query_one("#before"), self.query_one("#now")
        before.display = old is not None
        now.border_title = f"policy at step {self._walk.step}"
        now.border_subtitle = _length(sample.policy)
        now_text, before_text = self.query_one("#now-text", Static), self.query_one("#before-text", Static)
        if old is None:
            now_text.update(Text(clean(sample.policy)))
            return
        before.border_title, before.border_subtitle = name, _length(old)
        unicode = self.abilities.unicode
        before_text.update(diff_text(old, sample.policy, "old", self.palette, unicode))
        now_text.update(diff_text(old, sample.policy, "new", self.palette, unicode))

    def _history(self, place: int) -> Text:
        """A line for each evaluation around the one that is looked at: words changed, the answer."""
        text = Text(no_wrap=True, overflow="ellipsis")
        index = self._walk.index
        if index is None or self.feed is None:
            return text
        first = max(0, min(index - _HISTORY // 2, len(self._walk.steps) - _HISTORY))
        entries = self.feed.state.samples[first : first + _HISTORY]
        width = len(str(self._walk.steps[-1]))
        mark = self.abilities.mark
        for number, entry in enumerate(entries, start=first):
            if place >= len(entry.samples):
                continue
            sample, is_here = entry.samples[place], number == index
            pieces = word_diff(sample.reference, sample.policy)
            text.append(
                f"{mark('cursor') if is_here else ' '} step {entry.step:>{width}}  ",
                "bold" if is_here else "",
            )
            text.append(f"{mark('new_text')}{count_words(pieces, 'new'):<3} ", self.palette.chosen)
            text.append(f"{mark('old')}{count_words(pieces, 'old'):<3} ", self.palette.rejected)
            text.append(printable(sample.policy) + "\n", "" if is_here else self.palette.muted)
        text.rstrip()
        return text

    def _other(self, sample: Sample, place: int) -> tuple[str, str | None]:
        """Name and text of the answer to compare with; None for nothing."""
        kind = AGAINST[self._against]
        if kind == "nothing":
            return kind, None
        index = self._walk.index
        if kind == "evaluation before" and index and self.feed is not None:
            earlier = self.feed.state.samples[index - 1]
            if place < len(earlier.samples):
                return f"policy at step {earlier.step}", earlier.samples[place].policy
        return "reference", sample.reference


def _length(text: str) -> str:
    words = len(text.split())
    return f"{words} word{'' if words == 1 else 's'}"
