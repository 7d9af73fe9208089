"""What every screen of a run has: the bar of screens, the run's header, how it ended, the keys.

A screen subclasses RunScreen, sets NAME, by which keymap has its keys, composes its body in `body` and draws
the run in `show`. The app calls `show` after new lines of the log, `tick` five times a second and `reset`
before the first `show` of another run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final, cast

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.screen import Screen
from textual.widgets import Input

from localdpo.dashboard.feed import RunFeed
from localdpo.dashboard.keymap import bindings_of, hidden_screens
from localdpo.dashboard.terminal import Abilities, Palette
from localdpo.dashboard.widgets.bars import Ending, KeyBar, RunHeader, TopBar
from localdpo.dashboard.widgets.basic import ListTable, StepSlider, Walk

if TYPE_CHECKING:
    from localdpo.dashboard.app import DashboardApp


# Below so many rows only what matters most is shown.
_TINY: Final = 18


class RunScreen(Screen[None]):
    """A screen of the dashboard. NAME is its name in keymap.SCREEN_TITLES."""

    NAME: ClassVar[str] = ""
    # Whether the line on how the open run ended is shown below the header.
    SHOWS_ENDING: ClassVar[bool] = True

    def __init_subclass__(cls, **options: bool) -> None:
        if cls.NAME:
            cls.BINDINGS = bindings_of(cls.NAME)
        super().__init_subclass__(**options)

    def __init__(self) -> None:
        super().__init__()
        # The run that the screen shows; None before the first `show`.
        self.feed: RunFeed | None = None
        self._is_ready = False

    @property
    def dashboard(self) -> DashboardApp:
        return cast("DashboardApp", self.app)

    @property
    def abilities(self) -> Abilities:
        return self.dashboard.abilities

    @property
    def palette(self) -> Palette:
        return self.dashboard.palette

    def body(self) -> ComposeResult:
        """The widgets between header and footer."""
        raise NotImplementedError

    def show(self, feed: RunFeed) -> None:
        """Draw the run as it is now."""

    def tick(self, now: float) -> None:
        """Draw what changes with time alone. `now`: Unix time in seconds."""

    def reset(self) -> None:
        """Forget what belongs to the run shown until now: another one follows."""

    def compose(self) -> ComposeResult:
        yield TopBar(self.NAME)
        yield RunHeader()
        if self.SHOWS_ENDING:
            yield Ending()
        with Vertical(id="body"):
            yield from self.body()
        yield KeyBar(self.NAME)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        # The key of a filter comes first, but to a line that has the keys it is a letter like another.
        if action == "filter" and isinstance(self.focused, Input):
            return False
        return super().check_action(action, parameters)

    def on_mount(self) -> None:
        self.set_class(not self.abilities.unicode, "-ascii")

    def on_resize(self) -> None:
        self.set_class(self.size.height < _TINY, "-tiny")

    def on_screen_resume(self) -> None:
        # Catch up on what happened while another screen was up; the widgets are mounted by this time.
        self._is_ready = True
        self.follow(self.dashboard.feed, self.dashboard.now())

    def follow(self, feed: RunFeed | None, now: float) -> None:
        """Show `feed` (None: no run is open) if the screen is up; called by the app."""
        if not self._is_ready:
            return
        header = self.query_one(RunHeader)
        header.display = feed is not None
        self.query_one(KeyBar).has_worker = feed is not None and feed.alive
        self.query_one(TopBar).hidden = frozenset() if feed is None else hidden_screens(feed.state.kind)
        if feed is None:
            return
        if feed is not self.feed:
            if self.feed is not None:
                self.reset()
            self.feed = feed
        header.show(feed, now, self.dashboard.worker_lives)
        if self.SHOWS_ENDING:
            self.query_one(Ending).show(feed, self.dashboard.worker_lives)
        self.show(feed)

    def refresh_time(self, now: float) -> None:
        """Draw what changes with time alone, in header and body; called by the app."""
        if not self._is_ready:
            return
        if self.feed is not None:
            self.query_one(RunHeader).show(self.feed, now, self.dashboard.worker_lives)
        self.query_one(TopBar).status = self.dashboard.pending.status(now)
        self.tick(now)


class DetailScreen(RunScreen):
    """A screen with a list; `action_open` shows the selected row in full (class `-open` of the body)."""

    def action_open(self) -> None:
        raise NotImplementedError

    def action_close(self) -> None:
        self.query_one("#body").remove_class("-open")
        self.query_one(ListTable).focus()

    def action_other(self, by: int) -> None:
        """The row before or after, also where the list is hidden and has no keys of its own."""
        self.query_one(ListTable).move_by(by)

    def on_mount(self) -> None:
        self.query_one(ListTable).focus()

    def on_data_table_row_selected(self) -> None:
        self.action_open()


class StepScreen(RunScreen):
    """A screen of what every evaluation brings, with a slider over their steps and keys to move along it."""

    def __init__(self) -> None:
        super().__init__()
        self._walk = Walk()

    def show_step(self) -> None:
        """Draw what belongs to the step that is selected in `_walk`."""
        raise NotImplementedError

    def show_slider(self, note: str) -> None:
        """Draw the slider with `note`, or why it has no step."""
        if self._walk.index is None and self.feed is not None:
            note = self.feed.state.why_none(self.NAME)
        self.query_one(StepSlider).show(self._walk, note)

    def reset(self) -> None:
        self._walk = Walk()

    def action_step(self, by: int) -> None:
        self._walk.move(by)
        self.show_step()

    def action_first(self) -> None:
        self._walk.to(0)
        self.show_step()

    def action_last(self) -> None:
        self._walk.newest()
        self.show_step()

    def on_step_slider_moved(self, event: StepSlider.Moved) -> None:
        self._walk.to(event.index)
        self.show_step()
