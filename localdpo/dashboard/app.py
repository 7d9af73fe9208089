"""The dashboard: one app that tails the files of a run and shows them on six screens.

It touches the training process through command files only (records/control.py); a run keeps training when the
dashboard is left, closed or killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final

from textual.app import SystemCommand
from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widget import Widget

from localdpo.core.atomic import write_text
from localdpo.core.errors import USER_ERROR_EXIT, UserError
from localdpo.dashboard import keymap
from localdpo.dashboard.appbase import TerminalApp, frame_svg, frame_text
from localdpo.dashboard.feed import PendingCommands, RenderThrottle, RunFeed
from localdpo.dashboard.screens import dialogs
from localdpo.dashboard.screens.base import RunScreen
from localdpo.dashboard.state import NOT_STARTED
from localdpo.dashboard.terminal import THEME_NAMES
from localdpo.dashboard.widgets.basic import TextPanel
from localdpo.launch.processes import Job, Worker
from localdpo.records.answers import AnswersRequest
from localdpo.records.control import Command, send
from localdpo.records.rundir import RunDir
from localdpo.records.series import SeriesDir
from localdpo.records.sweeps import SweepDir

if TYPE_CHECKING:
    from textual.pilot import Pilot

# Seconds between two reads of the log, and between two chunks of a long one (the keys work in between).
_POLL_SECONDS: Final = 0.2
_READ_SECONDS: Final = 0.02
# Seconds of sleep where no frame is due beside a training on the CPU: waking up costs that, too.
_SLEEP_SECONDS: Final = 1.0
# Seconds that a frame may take to be composed, for `render_once`.
_COMPOSE_SECONDS: Final = 0.02


def _open_screen(name: str) -> RunScreen:
    """A new screen. Its module is imported only now, so that the first paint does not wait for all six."""
    module = import_module(f"localdpo.dashboard.screens.{name}")
    screen: RunScreen = getattr(module, f"{name.capitalize()}Screen")()
    return screen


class DashboardApp(TerminalApp):
    """The app. Without `run` it opens on Runs; `jump` names the screen to open on otherwise. With
    `series` it opens on that, which `maker` makes.

    Attributes:
        runs_dir: the folder of the runs.
        worker: the worker that was started from here, None for a viewer.
        request: answers that Compare generates at once, as far as the run's folder lacks them.
        feed: the log of the run that is open, None without one.
        pending: the commands that its worker has not answered yet.
        notifies: whether the desktop is notified of warnings and of the run's end.
    """

    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "colon"
    SCREENS: ClassVar[dict[str, Callable[[], Screen]]] = {
        name: partial(_open_screen, name) for name in keymap.SCREEN_TITLES
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        *keymap.bindings_of(""),
        # Keys typed out of habit: neither may end the run, and Ctrl-C explains how to leave.
        Binding("ctrl+c", "interrupt", show=False, system=True),
        Binding("ctrl+q", "leave", show=False, priority=True),
    ]

    def __init__(
        self,
        runs_dir: Path,
        run: RunDir | None,
        worker: Worker | None = None,
        jump: str = "live",
        request: AnswersRequest | None = None,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
        throttle: RenderThrottle | None = None,
        notifies: bool = False,
        series: SeriesDir | None = None,
        maker: Job | None = None,
    ) -> None:
        super().__init__(environment)
        self.runs_dir = runs_dir
        self.worker = worker
        self.request = request
        self.feed: RunFeed | None = None if run is None else RunFeed(run)
        self.now = clock
        self.notifies = notifies
        # The series that the open run was opened from.
        self._opened_from: tuple[SeriesDir, Job | None] | None = None
        # How many of the log's alerts are known; None before the log was read to its end.
        self._alerted: int | None = None
        self._series, self._maker = series, maker
        self._jump = jump if run is not None else "runs"
        self.pending = PendingCommands()
        self._throttle = throttle or RenderThrottle()
        # Whether worker and training were alive at the last poll.
        self._last_alive: tuple[bool, bool] | None = None

    # --- what the screens read ------------------------------------------------------------------------

    @property
    def worker_lives(self) -> bool:
        """Whether a worker that was started from here has not ended; it may not hold the run's lock yet."""
        return self.worker is not None and self.worker.returncode is None

    # --- life -----------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        self._poll()
        if self._is_refused():
            return
        self.push_screen(self._jump)
        if self._series is not None:
            self.show_series(self._series, self._maker)
        self._ticks = self.set_interval(_POLL_SECONDS, self._tick)

    def attach(
        self,
        run: RunDir,
        worker: Worker | None = None,
        series: SeriesDir | None = None,
        maker: Job | None = None,
    ) -> None:
        """Open another run on Live. `worker`: if it was just started from here. `series`: the one that it was
        opened from, and its `maker`, to return there.
        """
        self.feed, self.worker, self.request = RunFeed(run), worker, None
        self._opened_from = None if series is None else (series, maker)
        self.pending = PendingCommands()
        self._last_alive = self._alerted = None
        self._poll()
        self.action_go("live")

    def show_series(self, series: SeriesDir, maker: Job | None = None) -> None:
        """Show a series, above Runs. `maker`: the process that was started to make it."""
        from localdpo.dashboard.screens.series import RoundsScreen, SweepScreen

        screen = SweepScreen if isinstance(series, SweepDir) else RoundsScreen
        self.push_screen(screen(series, maker))

    def back_to_series(self) -> None:
        """Return to the series that the open run was opened from, if it was."""
        if self._opened_from is not None:
            self.action_go("runs")
            self.show_series(*self._opened_from)

    def detach(self) -> None:
        """Have no run open: the one that was is gone."""
        self.feed, self.worker = None, None
        self.pending = PendingCommands()
        for screen in self._run_screens():
            screen.follow(None, self.now())

    def _tick(self) -> None:
        if self._is_throttled():
            if self.feed is not None and self.feed.trains_on_cpu:
                self._ticks.pause()
                self.set_timer(_SLEEP_SECONDS, self._ticks.resume)
            return
        self._poll()
        if not self.is_running:
            return
        now = self.now()
        for screen in self._run_screens():
            screen.refresh_time(now)

    def _is_throttled(self) -> bool:
        """Whether no frame is drawn now; never while a command waits for its answer."""
        feed = self.feed
        if feed is None or self.pending:
            return False
        if self._throttle.is_due(beside_training=feed.trains_on_cpu):
            return False
        return self._last_alive == (feed.run.is_running(), self.worker_lives)

    def _poll(self) -> None:
        """Read the new lines of the log, a long log in chunks over several turns of the event loop."""
        feed = self.feed
        # Timers still fire while the app closes its screens.
        if feed is None or not self.is_running:
            return
        has_changed = feed.poll(_READ_SECONDS)
        if feed.behind:
            self.set_timer(0.001, self._poll)
        # A worker that was started from here may end without an event in the log.
        alive = (feed.alive, self.worker_lives)
        if not has_changed and alive == self._last_alive:
            return
        self._last_alive = alive
        for answer in self.pending.settle(feed.state.acknowledgements, feed.alive):
            self.notify(
                answer.message, title=answer.command or "", severity="information" if answer.ok else "warning"
            )
        if self._is_refused():
            self.exit()
            return
        if not feed.behind:
            if self.notifies and self._alerted is not None:
                for text in feed.state.alerts[self._alerted :]:
                    self.alert(text)
            self._alerted = len(feed.state.alerts)
        now = self.now()
        for screen in self._run_screens():
            screen.follow(feed, now)

    def _run_screens(self) -> list[RunScreen]:
        return [screen for screen in self.screen_stack if isinstance(screen, RunScreen)]

    def _is_refused(self) -> bool:
        """Whether the worker refused to start: there is nothing to look at then."""
        if self.worker is None or self.worker.returncode is None or self.feed is None:
            return False
        return self.worker.returncode == USER_ERROR_EXIT or self.feed.state.start is NOT_STARTED

    # --- actions --------------------------------------------------------------------------------------

    def action_go(self, name: str) -> None:
        if self.feed is None and name != "runs":
            self.notify("no run is open: choose one here, enter opens it")
            return
        if self.feed is not None and name in keymap.hidden_screens(kind := self.feed.state.kind):
            self.notify(f"this run trains on {kind.rows}: there is nothing for {keymap.SCREEN_TITLES[name]}")
            return
        while len(self.screen_stack) > 2:
            self.pop_screen()
        if not isinstance(self.screen, RunScreen) or name != self.screen.NAME:
            self.switch_screen(name)

    def action_help(self) -> None:
        if isinstance(self.screen, dialogs.DashboardHelp):
            return
        here = self.screen_name or "runs"
        titles = {here: "", "": "Everywhere", **keymap.SCREEN_TITLES, **keymap.INNER_TITLES}
        titles[here] += " (this screen)"
        groups = [(title, keymap.keys_of(name)) for name, title in titles.items()]
        self.push_screen(dialogs.DashboardHelp(groups))

    def action_jump(self) -> None:
        """A letter on every chart and pane of the screen; its key goes there."""
        if not isinstance(self.screen, RunScreen):
            return

        def chosen(target: Widget | None) -> None:
            if isinstance(target, TextPanel):
                target.enter()
            elif target is not None:
                target.focus()

        parts = self.screen.query("#body *").results(Widget)
        targets = [part for part in parts if part.can_focus or isinstance(part, TextPanel)]
        self.push_screen(
            dialogs.JumpScreen([part for part in targets if part.region and part.is_on_screen]), chosen
        )

    def action_theme(self) -> None:
        index = THEME_NAMES.index(self.theme) if self.theme in THEME_NAMES else -1
        self.set_theme(THEME_NAMES[(index + 1) % len(THEME_NAMES)])

    def action_alerts(self) -> None:
        self.notifies = not self.notifies
        is_not = "is" if self.notifies else "is not"
        self.notify(f"the desktop {is_not} notified of warnings and of the run's end")

    def set_theme(self, name: str) -> None:
        """Switch to the theme `name`, and redraw what Textual does not redraw by itself."""
        self.theme = name
        for screen in self._run_screens():
            screen.follow(self.feed, self.now())
        self.notify(f"theme: {name}", timeout=2)

    def action_leave(self) -> None:
        self.exit()

    def action_interrupt(self) -> None:
        """Ctrl-C: ask how to stop the run, and say how to leave without stopping it."""
        if self._stops_series():
            return
        if self.feed is not None and self.feed.alive:
            self.action_stop()
        else:
            self.notify("press q to leave the dashboard", title="Ctrl-C")

    def action_pause(self) -> None:
        """Pause or resume the run; a command that is not answered yet counts as carried out."""
        pending = self.pending.latest("pause", "resume")
        is_paused = self.feed is not None and self.feed.state.progress.phase == "paused"
        self.action_ask("resume" if pending == "pause" or (is_paused and pending is None) else "pause")

    def action_stop(self) -> None:
        """Ask how to stop the run, or the series."""
        if self._stops_series():
            return
        if self.feed is None or not self.feed.alive:
            self._say_no_worker("stop")
            return
        if isinstance(self.screen, dialogs.ChoiceDialog):
            return

        def answered(choice: str | None) -> None:
            if choice in ("save", "discard"):
                self.action_ask("stop", save=choice == "save")

        question = f"Stop {self.feed.run.name}?"
        self.push_screen(dialogs.ChoiceDialog(question, dialogs.STOP_DETAIL, dialogs.STOP_CHOICES), answered)

    def _stops_series(self) -> bool:
        """Whether a series is up, which is then asked about."""
        from localdpo.dashboard.screens.series import SeriesScreen

        if not isinstance(self.screen, SeriesScreen):
            return False
        self.screen.action_stop()
        return True

    def action_ask(self, command: Command, save: bool = True) -> None:
        """Send the worker a command; its answer is shown when it comes."""
        if self.feed is None or not self.feed.alive:
            self._say_no_worker(command)
            return
        try:
            id = send(self.feed.run, command, save=save)
        except UserError as error:
            self.notify(str(error), severity="error")
            return
        self.pending.add(id, command, self.now())
        for screen in self._run_screens():
            screen.refresh_time(self.now())

    def _say_no_worker(self, command: str) -> None:
        hint = "" if self.feed is None else " (6 Runs, then R, resumes the run)"
        self.notify(f"no worker is running, so there is nothing to {command}{hint}", severity="warning")

    # --- command palette and export -------------------------------------------------------------------

    def action_command_palette(self) -> None:
        if not isinstance(self.screen, dialogs.CommandsScreen):
            self.push_screen(dialogs.CommandsScreen(id="--command-palette"))

    def get_system_commands(self, screen: Screen) -> Iterator[SystemCommand]:
        """The entries of the command palette: every key of the table by name, the themes, the export."""
        for key in (key for name in dict.fromkeys(("", self.screen_name)) for key in keymap.keys_of(name)):
            if key.action in ("command_palette", "theme"):
                continue
            title = f"Go to {key.help}" if key.action.startswith("go(") else key.help.capitalize()
            # Once the palette is gone.
            run = partial(self.call_later, screen.run_action, keymap.namespaced(key))
            yield SystemCommand(title, f"key {keymap.key_name(key.key, self.abilities.unicode)}", run)
        for theme in THEME_NAMES:
            yield SystemCommand(f"Theme: {theme}", "key T: the next one", partial(self.set_theme, theme))
        yield SystemCommand("Export screen to SVG", "into the current folder", self.export_svg)

    @property
    def screen_name(self) -> str:
        """The name of the screen of a run that is up, below any dialog; empty before there is one."""
        screens = self._run_screens()
        return screens[-1].NAME if screens else ""

    def export_svg(self) -> Path:
        """Write the screen as `localdpo-SCREEN-TIME.svg` into the current folder and say so; its path."""
        name = self.screen_name or "screen"
        path = Path(f"localdpo-{name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(self.now()))}.svg")
        try:
            write_text(path, frame_svg(self))
        except OSError as error:
            self.notify(f"{path}: cannot be written: {error.strerror}", severity="error")
        except UserError as error:
            self.notify(str(error), severity="error")
        else:
            self.notify(f"written: {path}")
        return path


def render_once(app: DashboardApp, size: tuple[int, int]) -> str:
    """One frame of `app` at (columns, rows) when the log has been read to its end; needs no terminal.

    Raises the app's `failure`, if it has one.
    """
    frames: list[str] = []

    async def take(pilot: Pilot[object]) -> None:
        while app.feed is not None and app.feed.behind and app.failure is None:
            await pilot.pause(_COMPOSE_SECONDS)
        if app.failure is not None:
            return
        await pilot.pause()
        await pilot.pause(_COMPOSE_SECONDS)
        frames.append(frame_text(app))
        app.exit()

    app.run(headless=True, size=size, auto_pilot=take)
    if app.failure is not None:
        raise app.failure
    return frames[0]
