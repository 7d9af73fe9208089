"""Samples: how the answers to the watched prompts change from one evaluation to the next."""

from __future__ import annotations

from typing import Final

from textual.app import ComposeResult
from textual.containers import Container
from textual.widgets import Static

from localdpo.core.text import changes, count_words, counted, printable, word_diff
from localdpo.dashboard.feed import RunFeed
from localdpo.dashboard.screens.base import StepScreen
from localdpo.dashboard.widgets.answertext import clean, diff_text, prompt_view
from localdpo.dashboard.widgets.basic import StepSlider, TextPanel
from localdpo.out.console import Text
from localdpo.records.events import Sample

# What the answer is compared with, in the order of the key; the reference by its name for the kind of run.
AGAINST: Final = ("reference", "evaluation before", "nothing")
_NARROW: Final = 70
_LOW: Final = 28
# Evaluations that the history shows at once.
_HISTORY: Final = 8


class SamplesScreen(StepScreen):
    """Reference and policy side by side with the words marked that differ; a slider over the evaluations."""

    NAME = "samples"

    def __init__(self) -> None:
        super().__init__()
        self._prompt = 0
        self._against = 0
        self._drawn: object = None

    def body(self) -> ComposeResult:
        yield StepSlider()
        yield TextPanel("prompt")
        with Container(id="answers"):
            yield TextPanel("before")
            yield TextPanel("now")
        yield Static(classes="panel", id="history")

    def reset(self) -> None:
        super().reset()
        self._prompt = 0
        self._drawn = None

    def show(self, feed: RunFeed) -> None:
        self._walk.extend([samples[0].step for samples in feed.state.samples])
        self.show_step()

    def on_resize(self) -> None:
        self.query_one("#answers").set_class(self.size.width < _NARROW, "-stacked")
        self.query_one("#body").set_class(self.size.height < _LOW, "-low")
        self._drawn = None
        self.show_step()

    # --- keys -----------------------------------------------------------------------------------------

    def action_prompt(self, by: int) -> None:
        count = len(self._samples())
        if count:
            self._prompt = (self._prompt + by) % count
            self.show_step()

    def action_against(self) -> None:
        self._against = (self._against + 1) % len(AGAINST)
        self.show_step()

    def action_scroll(self, by: int) -> None:
        for side in ("#before", "#now"):
            self.query_one(side, TextPanel).scroll_pages(by)

    # --- drawing --------------------------------------------------------------------------------------

    def _samples(self) -> list[Sample]:
        """Those of the evaluation that is looked at."""
        if self.feed is None or self._walk.index is None:
            return []
        return self.feed.state.samples[self._walk.index]

    def show_step(self) -> None:
        samples = self._samples()
        index = min(self._prompt, len(samples) - 1)
        self.query_one("#body").set_class(not samples, "-empty")
        if not samples:
            self.show_slider("")
            return
        sample = samples[index]
        name, old = self._baseline(sample, index)
        key = (sample, name, old, index, len(samples), self._walk.steps[-1], self._walk.step, self.palette)
        if key == self._drawn:
            return
        self._drawn = key
        pieces = word_diff(old, sample.policy) if old is not None else []
        note = f"against {name}: {changes(pieces)}" if old is not None else ""
        self.show_slider(note)
        self.query_one("#prompt", TextPanel).show(
            prompt_view(sample.prompt, self.palette), f"prompt {index + 1} of {len(samples)}"
        )
        title = f"policy at step {self._walk.step}"
        before, now = self.query_one("#before", TextPanel), self.query_one("#now", TextPanel)
        before.display = old is not None
        if old is None:
            now.show(Text(clean(sample.policy)), title, _length(sample.policy))
        else:
            old_text = diff_text(old, sample.policy, "old", self.palette, self.abilities)
            before.show(old_text, name, _length(old))
            new_text = diff_text(old, sample.policy, "new", self.palette, self.abilities)
            now.show(new_text, title, _length(sample.policy))
        history = self.query_one("#history", Static)
        history.border_title = f"this prompt at every evaluation, against: {self._before}"
        history.update(self._history(index))

    def _history(self, prompt: int) -> Text:
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
            if prompt >= len(entry):
                continue
            sample, is_here = entry[prompt], number == index
            pieces = word_diff(sample.reference, sample.policy)
            cursor = mark("cursor") if is_here else " "
            text.append(f"{cursor} step {sample.step:>{width}}  ", "bold" if is_here else "")
            text.append(f"{mark('new_text')}{count_words(pieces, 'new'):<3} ", self.palette.chosen)
            text.append(f"{mark('old')}{count_words(pieces, 'old'):<3} ", self.palette.rejected)
            text.append(printable(sample.policy) + "\n", "" if is_here else self.palette.muted)
        text.rstrip()
        return text

    @property
    def _before(self) -> str:
        """What the model is called that the samples' first answers are from."""
        return "reference" if self.feed is None else self.feed.state.kind.before

    def _baseline(self, sample: Sample, prompt: int) -> tuple[str, str | None]:
        """Name and text of the answer to compare with; None for nothing."""
        kind = AGAINST[self._against]
        if kind == "nothing":
            return kind, None
        index = self._walk.index
        if kind == "evaluation before" and index and self.feed is not None:
            earlier = self.feed.state.samples[index - 1]
            if prompt < len(earlier):
                return f"policy at step {earlier[prompt].step}", earlier[prompt].policy
        return self._before, sample.reference


def _length(text: str) -> str:
    return counted(len(text.split()), "word")
