"""The line below the bar of screens: which run, what it is doing, how far it is, how long it still takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

from rich.cells import cell_len
from textual.widget import Widget

from localdpo.core.process import HELD
from localdpo.core.text import age, format_number, format_seconds, printable
from localdpo.dashboard.picture import fitted
from localdpo.dashboard.state import RunState
from localdpo.dashboard.terminal import Abilities
from localdpo.out.console import Text
from localdpo.records.progress import Phase, event_age, silent_for
from localdpo.records.rundir import State
from localdpo.records.wording import PHASES

if TYPE_CHECKING:
    from localdpo.dashboard.app import DashboardApp
    from localdpo.dashboard.feed import RunFeed

_GAP: Final = "  "
_BAR: Final = (8, 24)  # shortest and longest progress bar, in cells
_LONGEST_NAME: Final = 28
_WORDS: Final[dict[str, str]] = {"new": "not started", **{str(name): word for name, word in PHASES.items()}}
# The colour of a state's mark and word; blue for what works, none of them without a mark and a word.
_STATE_COLOURS: Final = {
    "finished": "good",
    "crashed": "critical",
    "failed": "critical",
    "paused": "rejected",
    "stopped": "rejected",
}


@dataclass(frozen=True)
class Word:
    """A piece of the header: its text, a colour of the palette, and its weight: the lightest goes first."""

    text: str
    colour: str = "ink"
    bold: bool = False
    weight: int = 9


def phase_of(state: RunState, alive: bool, starting: bool = False) -> Phase | State:
    """One word of terminal.MARKS for what the run is doing.

    `alive`: its lock is held; `starting`: its worker was started and may not hold the lock yet.
    """
    if not alive:
        return "starting" if starting else state.state(False)
    # A worker that goes on with a run has not said so yet.
    return "starting" if state.progress.phase in ("stopped", "failed", "crashed") else state.progress.phase


def header_words(
    state: RunState, alive: bool, now: float, abilities: Abilities, starting: bool = False
) -> list[Word]:
    """The pieces of the header in their order, at the Unix time `now`, without the bar."""
    phase, progress = phase_of(state, alive, starting), state.progress
    beta = "β" if abilities.unicode else "beta"
    word = _WORDS.get(phase, phase)
    words = [
        Word(f"{abilities.mark(phase)} {word}", _STATE_COLOURS.get(phase, "chosen"), True),
        Word(fitted(printable(state.name), _LONGEST_NAME, "~"), "ink", True, 7),
    ]
    if phase == "loading" and progress.done:
        words.append(Word(f"{progress.done:,} rows tokenised"))
    if phase == "reference":
        words.append(Word(f"{progress.done:,}/{progress.of:,} rows"))
    if progress.total is not None:
        words.append(Word(f"step {progress.step:,}/{progress.total:,}"))
    if alive and progress.eta is not None:
        words.append(Word(f"ETA {format_seconds(progress.eta)}", "ink", True, 8))
    if state.start.loss:
        words.append(Word(printable(state.start.loss), "muted", weight=2))
    if state.start.beta is not None:
        words.append(Word(f"{beta} {format_number(state.start.beta)}", "muted", weight=4))
    rate = state.train.get("learning_rate")
    if rate is not None and rate.last is not None and alive:
        words.append(Word(f"lr {rate.last:.3g}", "muted", weight=3))
    if alive and state.start.awake:
        held = state.start.awake == HELD
        words.append(Word("kept awake" if held else "may sleep", "muted", weight=1))
    quiet = event_age(progress, now)
    if quiet is not None:
        is_silent = alive and silent_for(progress, now) is not None
        words.append(Word(age(quiet), "critical" if is_silent else "muted", is_silent, 9 if is_silent else 5))
    return words


def fit(words: Sequence[Word], width: int) -> list[Word]:
    """The words that have room in `width` cells, those of least weight left out first."""
    kept = list(words)
    while len(kept) > 1 and sum(cell_len(word.text) + len(_GAP) for word in kept) - len(_GAP) > width:
        kept.remove(min(kept, key=lambda word: word.weight))
    return kept


def progress_bar(share: float, cells: int, unicode: bool) -> tuple[str, str]:
    """(done, to do) of a bar of `cells` characters."""
    done = round(min(max(share, 0.0), 1.0) * cells)
    full, empty = ("━", "─") if unicode else ("=", "-")
    return full * done, empty * (cells - done)


class RunHeader(Widget):
    """The line itself, one row high."""

    DEFAULT_CSS = "RunHeader { height: 1; width: 1fr; padding: 0 1; }"

    def __init__(self) -> None:
        super().__init__()
        self._line = Text()

    def show(self, feed: RunFeed, now: float) -> None:
        """Say what the run of `feed` is doing at the Unix time `now`."""
        line = self._make(feed, now)
        if line != self._line:
            self._line = line
            self.refresh()

    def render(self) -> Text:
        return self._line

    def on_resize(self) -> None:
        feed = getattr(self.screen, "feed", None)
        if feed is not None:
            self.show(feed, cast("DashboardApp", self.app).now())

    def _make(self, feed: RunFeed, now: float) -> Text:
        app = cast("DashboardApp", self.app)
        width = self.size.width or app.size.width - 2
        words = fit(header_words(feed.state, feed.alive, now, app.abilities, app.worker_lives), width)
        left = width - sum(cell_len(word.text) + len(_GAP) for word in words)
        line = Text(no_wrap=True, overflow="crop")
        progress = feed.state.progress
        for word in words:
            colour = getattr(app.palette, word.colour)
            line.append(word.text, f"bold {colour}" if word.bold else colour).append(_GAP)
            if word.text.startswith("step ") and progress.total and left >= _BAR[0] + len("100%") + 3:
                share = progress.step / progress.total
                cells = min(left - len("100%") - 3, _BAR[1])
                done, todo = progress_bar(share, cells, app.abilities.unicode)
                line.append(done, app.palette.chosen).append(todo, app.palette.line)
                line.append(f" {int(share * 100)}%{_GAP}", app.palette.ink)
        line.rstrip()
        return line
