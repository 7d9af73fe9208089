"""The lines around every screen: the bar of screens, what the run is doing, how it ended, the keys."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from rich.cells import cell_len
from rich.style import Style
from textual import events
from textual.reactive import reactive
from textual.widget import Widget
from textual.widgets import Static

from localdpo.core.process import HELD
from localdpo.core.text import age, format_number, format_seconds, printable
from localdpo.dashboard.appbase import app_of
from localdpo.dashboard.feed import RunFeed
from localdpo.dashboard.keymap import NEED_WORKER, SCREEN_TITLES, Key, key_name, keys_of, namespaced
from localdpo.dashboard.picture import fitted
from localdpo.dashboard.state import RunState
from localdpo.dashboard.terminal import Abilities
from localdpo.launch.explain import ended_lines
from localdpo.out.console import Text
from localdpo.records.progress import Phase, event_age, phase_count, silent_for
from localdpo.records.rundir import State
from localdpo.records.runs import beta_of
from localdpo.records.wording import PHASES

# Shown at the right end of the last line whatever else has room.
_ALWAYS: Final = ("question_mark", "q")
_GAP: Final = "  "


def _action(action: str) -> Style:
    """What a click on the text does. (Textual's own @click would underline it.)"""
    return Style(meta={"action": action})


class ActionBar(Widget):
    """A line of text whose parts do something when they are clicked."""

    async def on_click(self, event: events.Click) -> None:
        action = event.style.meta.get("action")
        if action is not None:
            await self.screen.run_action(action)


class TopBar(ActionBar):
    """The screens by number, the current one marked; at the right the commands that wait for an answer.

    Attributes:
        status: `sent: pause, 2s`, empty when nothing waits.
        hidden: screens that the run has nothing for.
    """

    status: reactive[str] = reactive("")
    hidden: reactive[frozenset[str]] = reactive(frozenset[str]())

    def __init__(self, screen: str) -> None:
        super().__init__()
        self._screen = screen

    def render(self) -> Text:
        palette = app_of(self).palette
        line = Text(no_wrap=True, overflow="ellipsis")
        titles = [title for name, title in SCREEN_TITLES.items() if name not in self.hidden]
        # What waits must be read: the other screens are numbers then, as they are in a narrow terminal.
        names = len("localdpo") + sum(len(title) + 4 for title in titles)
        is_wide = self.size.width >= names + (1 + cell_len(self.status) if self.status else 0)
        if is_wide:
            line.append("localdpo ", f"bold {palette.chosen}")
        for number, (name, title) in enumerate(SCREEN_TITLES.items(), start=1):
            if name in self.hidden:
                continue
            is_here = name == self._screen
            words = f" {number} {title} " if is_wide or is_here else f" {number} "
            style = Style.parse(f"bold reverse {palette.chosen}" if is_here else palette.muted)
            line.append(words, style + _action(f"app.go('{name}')"))
        if self.status:
            line.append(" " * max(1, self.size.width - line.cell_len - cell_len(self.status)))
            line.append(self.status, style=f"bold {palette.rejected}")
        return line


class KeyBar(ActionBar):
    """The keys of the screen and of the app, as many as there is room for; a click works like the key."""

    has_worker: reactive[bool] = reactive(False)

    def __init__(self, screen: str) -> None:
        super().__init__()
        own = [key for key in keys_of(screen) if key.footer] if screen else []
        everywhere = [key for key in keys_of("") if key.footer]
        self._keys = [*own, *(key for key in everywhere if key.key not in _ALWAYS)]
        self._always = [key for key in everywhere if key.key in _ALWAYS]

    def render(self) -> Text:
        right = Text(_GAP).join(self._words(self._always))
        room = self.size.width - right.cell_len
        left = Text(no_wrap=True, overflow="crop")
        for words in self._words(
            [key for key in self._keys if self.has_worker or key.action not in NEED_WORKER]
        ):
            if left.cell_len + words.cell_len + 2 * len(_GAP) > room:
                break
            left.append_text(words).append(_GAP)
        return left.append(" " * max(0, room - left.cell_len)).append_text(right)

    def _words(self, keys: Sequence[Key]) -> Iterator[Text]:
        """`key label` of each; keys of one label that follow each other share it (`←→ step`)."""
        app = app_of(self)
        for label, group in itertools.groupby(keys, key=lambda key: key.label):
            text = Text()
            for key in group:
                name, action = key_name(key.key, app.abilities.unicode), _action(namespaced(key))
                text.append(name, Style.parse(f"bold {app.palette.chosen}") + action)
            yield text.append(f" {label}", Style.parse(app.palette.muted) + action)


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
class HeaderWord:
    """A piece of the header: its text, a colour of the palette, its weight: the lightest is dropped first."""

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
    # A worker that resumes a run has not written so yet.
    return "starting" if state.progress.phase in ("stopped", "failed", "crashed") else state.progress.phase


def header_words(
    state: RunState, alive: bool, now: float, abilities: Abilities, starting: bool = False
) -> list[HeaderWord]:
    """The pieces of the header in their order, at the Unix time `now`, without the bar."""
    phase, progress = phase_of(state, alive, starting), state.progress
    word = _WORDS.get(phase, phase)
    words = [
        HeaderWord(f"{abilities.mark(phase)} {word}", _STATE_COLOURS.get(phase, "chosen"), True),
        HeaderWord(fitted(printable(state.name), _LONGEST_NAME, "~"), "ink", True, 7),
    ]
    if count := phase_count(progress):
        words.append(HeaderWord(count))
    if progress.total is not None:
        words.append(HeaderWord(f"step {progress.step:,}/{progress.total:,}"))
    if alive and progress.eta is not None:
        words.append(HeaderWord(f"ETA {format_seconds(progress.eta)}", "ink", True, 8))
    if loss := state.start.text("loss"):
        words.append(HeaderWord(printable(loss), "muted", weight=2))
    beta = beta_of(state.start)
    if beta is not None:
        name = "β" if abilities.unicode else "beta"
        words.append(HeaderWord(f"{name} {format_number(beta)}", "muted", weight=4))
    rate = state.train.get("learning_rate")
    if rate is not None and rate.last is not None and alive:
        words.append(HeaderWord(f"lr {rate.last:.3g}", "muted", weight=3))
    if alive and (awake := state.start.text("awake")):
        words.append(HeaderWord("kept awake" if awake == HELD else "may sleep", "muted", weight=1))
    quiet = event_age(progress, now)
    if quiet is not None:
        is_silent = alive and silent_for(progress, now) is not None
        words.append(
            HeaderWord(age(quiet), "critical" if is_silent else "muted", is_silent, 9 if is_silent else 5)
        )
    return words


def fit(words: Sequence[HeaderWord], width: int) -> list[HeaderWord]:
    """The words that have room in `width` cells, those of least weight dropped first."""
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
    """One row: which run, what it is doing, how far it is, how long it will still take."""

    DEFAULT_CSS = "RunHeader { height: 1; width: 1fr; padding: 0 1; }"

    def __init__(self) -> None:
        super().__init__()
        self._line = Text()
        self._shown: tuple[RunFeed, float, bool] | None = None

    def show(self, feed: RunFeed, now: float, starting: bool) -> None:
        """Show the run of `feed` at the Unix time `now`; `starting`: see `phase_of`."""
        self._shown = feed, now, starting
        app = app_of(self)
        width = self.size.width or app.size.width - 2
        words = fit(header_words(feed.state, feed.alive, now, app.abilities, starting), width)
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
        if line != self._line:
            self._line = line
            self.refresh()

    def render(self) -> Text:
        return self._line

    def on_resize(self) -> None:
        if self._shown is not None:
            self.show(*self._shown)


class Ending(Static):
    """Hidden while the run is alive; then a line on how it ended and one on how to resume it."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: tuple[str, tuple[str, ...]] | None = None
        self.display = False

    def show(self, feed: RunFeed, starting: bool) -> None:
        """Show how the run of `feed` ended, if it has; `starting`: see `phase_of`."""
        state = feed.state.state(feed.alive)
        if state in ("running", "new") or feed.behind or starting:
            self.display, self._shown = False, None
            return
        lines = tuple(ended_lines(feed.run, feed.state.log()))
        if state == "finished":
            # One line fits 80 columns; where the adapter is, leaving the dashboard prints.
            lines = (f"{lines[0]}; {lines[-1]}",)
        if (state, lines) == self._shown:
            return
        self._shown = (state, lines)
        text = Text(no_wrap=False, overflow="fold")
        text.append(f"{app_of(self).abilities.mark(state)} {printable(lines[0])}", "bold")
        for line in lines[1:]:
            text.append(f"\n  {printable(line)}")
        self.display = True
        self.update(text)
        self.set_classes(f"-{state}")
