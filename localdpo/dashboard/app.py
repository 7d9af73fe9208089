"""The dashboard: one app that tails the files of a run and shows them on six screens.

It never touches the training process but through command files (records/control.py); a run goes on when the
dashboard is left, closed or killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.filter import LineFilter
from textual.screen import Screen

from localdpo.core.atomic import write_text
from localdpo.core.errors import USER_ERROR_EXIT, UserError
from localdpo.core.text import printable
from localdpo.dashboard.commands import commands
from localdpo.dashboard.feed import RunFeed
from localdpo.dashboard.keymap import bindings_of
from localdpo.dashboard.once import svg_of
from localdpo.dashboard.pace import Pace
from localdpo.dashboard.pending import PendingCommands
from localdpo.dashboard.screens.base import RunScreen
from localdpo.dashboard.terminal import Abilities, abilities_of, line_filters
from localdpo.dashboard.themes import PALETTES, THEME_NAMES, Palette, theme_of
from localdpo.launch import Worker
from localdpo.records.control import Command, send
from localdpo.records.rundir import RunDir

# Seconds between two looks at the log, and between two chunks of a long one (the keys work in between).
_BEAT: Final = 0.2
_CHUNK: Final = 0.02
# Seconds without a beat where none is due beside a training: waking up costs that, too.
_REST: Final = 1.0
_FEW_COLOURS: Final = 16


def _live() -> RunScreen:
    from localdpo.dashboard.screens.live import LiveScreen

    return LiveScreen()


def _samples() -> RunScreen:
    from localdpo.dashboard.screens.samples import SamplesScreen

    return SamplesScreen()


def _pairs() -> RunScreen:
    from localdpo.dashboard.screens.pairs import PairsScreen

    return PairsScreen()


def _compare() -> RunScreen:
    from localdpo.dashboard.screens.compare import CompareScreen

    return CompareScreen()


def _judge() -> RunScreen:
    from localdpo.dashboard.screens.judge import JudgeScreen

    return JudgeScreen()


def _runs() -> RunScreen:
    from localdpo.dashboard.screens.runs import RunsScreen

    return RunsScreen()


class DashboardApp(App[None]):
    """The app. Without `run` it opens on Runs; `jump` names the screen to open on otherwise.

    Attributes:
        runs_dir: the folder of the runs.
        worker: the worker that was started from here, None for a viewer.
        feed: the log of the run that is open, None without one.
        abilities: what the terminal can show; one choice for all widgets.
    """

    TITLE = "localdpo"
    CSS_PATH = "styles/app.tcss"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "colon"
    SCREENS: ClassVar[dict[str, Callable[[], Screen]]] = {
        "live": _live,
        "samples": _samples,
        "pairs": _pairs,
        "compare": _compare,
        "judge": _judge,
        "runs": _runs,
    }
    BINDINGS: ClassVar[list[BindingType]] = [
        *bindings_of(""),
        # What fingers do from habit: neither may end a run, nor leave without a word.
        Binding("ctrl+c", "interrupt", show=False, system=True),
        Binding("ctrl+q", "leave", show=False, priority=True),
    ]

    def __init__(
        self,
        runs_dir: Path,
        run: RunDir | None,
        worker: Worker | None = None,
        jump: str = "live",
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.time,
        pace: Pace | None = None,
    ) -> None:
        self.abilities: Abilities = abilities_of(environment)
        super().__init__()
        for name in THEME_NAMES:
            self.register_theme(theme_of(name))
        has_few = self.abilities.colour and self.abilities.colours <= _FEW_COLOURS
        self.theme = "16" if has_few else "dark"
        self.runs_dir = runs_dir
        self.worker = worker
        self.feed: RunFeed | None = None if run is None else RunFeed(run)
        self.now = clock
        self._jump = jump if run is not None else "runs"
        self._pending = PendingCommands()
        self._pace = pace or Pace()
        self._life: tuple[bool, bool] | None = None

    # --- what the screens read ------------------------------------------------------------------------

    @property
    def palette(self) -> Palette:
        """The colours of the theme, by meaning."""
        return PALETTES.get(self.theme, PALETTES["dark"])

    @property
    def worker_lives(self) -> bool:
        """Whether a worker that was started from here has not ended; its lock may not be taken yet."""
        return self.worker is not None and self.worker.returncode is None

    def status(self, now: float) -> str:
        """The commands that the worker has not answered, for the first line."""
        return self._pending.status(now)

    def get_line_filters(self) -> list[LineFilter]:
        return line_filters(super().get_line_filters(), self.abilities)

    def notify(self, message: str, **options: Any) -> None:
        """Show `message` for a while; it is never taken for markup, as names may look like it."""
        super().notify(printable(message), **{**options, "markup": False})

    # --- life -----------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        self._poll()
        if self._is_refused():
            return
        self.push_screen(self._jump)
        self._beats = self.set_interval(_BEAT, self._beat)

    def attach(self, run: RunDir, worker: Worker | None = None) -> None:
        """Open another run on Live. `worker`: if it was just started from here."""
        self.feed = RunFeed(run)
        self.worker = worker
        self._pending = PendingCommands()
        self._life = None
        self._poll()
        self.action_go("live")

    def detach(self) -> None:
        """Have no run open: the one that was is gone."""
        self.feed, self.worker = None, None
        self._pending = PendingCommands()
        for screen in self._run_screens():
            screen.follow(None, self.now())

    def _beat(self) -> None:
        if self._may_wait():
            if self.feed is not None and self.feed.trains_on_cpu:
                self._beats.pause()
                self.set_timer(_REST, self._beats.resume)
            return
        self._poll()
        if not self.is_running:
            return
        now = self.now()
        for screen in self._run_screens():
            screen.beat(now)

    def _may_wait(self) -> bool:
        """Whether nothing is drawn at this beat; never so while an answer is awaited."""
        feed = self.feed
        if feed is None or self._pending or self._pace.is_due(beside_training=feed.trains_on_cpu):
            return False
        return self._life == (feed.run.is_running(), self.worker_lives)

    def _poll(self) -> None:
        """Read what the log brought, in chunks; a long log is read over several turns of the event loop."""
        feed = self.feed
        # The last timers go off while the screens are being taken down.
        if feed is None or not self.is_running:
            return
        has_changed = feed.poll(_CHUNK)
        if feed.behind:
            self.set_timer(0.001, self._poll)
        # A worker that was started from here may end without a word in the log.
        life = (feed.alive, self.worker_lives)
        if not has_changed and life == self._life:
            return
        self._life = life
        for answer in self._pending.settle(feed.state.acknowledgements, feed.alive):
            self.notify(
                answer.message, title=answer.command or "", severity="information" if answer.ok else "warning"
            )
        if self._is_refused():
            self.exit()
            return
        now = self.now()
        for screen in self._run_screens():
            screen.follow(feed, now)

    def _run_screens(self) -> list[RunScreen]:
        return [screen for screen in self.screen_stack if isinstance(screen, RunScreen)]

    def _is_refused(self) -> bool:
        """Whether the worker found a mistake before anything began: there is nothing to look at then."""
        if self.worker is None or self.worker.returncode is None or self.feed is None:
            return False
        return self.worker.returncode == USER_ERROR_EXIT or self.feed.state.start.time is None

    # --- actions --------------------------------------------------------------------------------------

    def action_go(self, name: str) -> None:
        """Show the screen `name`."""
        if self.feed is None and name != "runs":
            self.notify("no run is open: choose one here, enter opens it")
            return
        while len(self.screen_stack) > 2:
            self.pop_screen()
        if not isinstance(self.screen, RunScreen) or name != self.screen.NAME:
            self.switch_screen(name)

    def action_help(self) -> None:
        """Show all keys."""
        from localdpo.dashboard.screens.help import HelpScreen

        if not isinstance(self.screen, HelpScreen):
            self.push_screen(HelpScreen(self.screen_name or "runs"))

    def action_theme(self) -> None:
        """The next theme."""
        place = THEME_NAMES.index(self.theme) if self.theme in THEME_NAMES else -1
        self.set_theme(THEME_NAMES[(place + 1) % len(THEME_NAMES)])

    def set_theme(self, name: str) -> None:
        """The theme `name`; what is drawn by hand is drawn anew."""
        self.theme = name
        for screen in self._run_screens():
            screen.follow(self.feed, self.now())
        self.notify(f"theme: {name}", timeout=2)

    def action_leave(self) -> None:
        """Leave; training goes on."""
        self.exit()

    def action_interrupt(self) -> None:
        """Ctrl-C: asks what to do with the run, and says how to leave it alone."""
        if self.feed is not None and self.feed.alive:
            self.notify("training goes on when you leave with q; this asks how to stop it", title="Ctrl-C")
            self.action_stop()
        else:
            self.notify("press q to leave the dashboard", title="Ctrl-C")

    def action_pause(self) -> None:
        """Pause the run or resume it; the latest pending command counts."""
        pending = self._pending.latest("pause", "resume")
        is_paused = self.feed is not None and self.feed.state.progress.phase == "paused"
        self.ask("resume" if pending == "pause" or (is_paused and pending is None) else "pause")

    def action_checkpoint(self) -> None:
        """Save a checkpoint now."""
        self.ask("checkpoint")

    def action_evaluate(self) -> None:
        """Evaluate now."""
        self.ask("evaluate")

    def action_stop(self) -> None:
        """Ask how to stop the run."""
        from localdpo.dashboard.screens.dialogs import STOP_CHOICES, Choose

        if self.feed is None or not self.feed.alive:
            self._say_no_worker("stop")
            return
        if isinstance(self.screen, Choose):
            return

        def answered(choice: str | None) -> None:
            if choice in ("save", "discard"):
                self.ask("stop", save=choice == "save")

        name = self.feed.run.name
        self.push_screen(Choose(f"Stop {name}?", "Training can be resumed later.", STOP_CHOICES), answered)

    def ask(self, command: Command, *, save: bool = True) -> None:
        """Give the worker a command; its answer is shown when it comes."""
        if self.feed is None or not self.feed.alive:
            self._say_no_worker(command)
            return
        try:
            id = send(self.feed.run, command, save=save)
        except UserError as error:
            self.notify(str(error), severity="error")
            return
        self._pending.add(id, command, self.now())
        for screen in self._run_screens():
            screen.beat(self.now())

    def _say_no_worker(self, command: str) -> None:
        hint = "" if self.feed is None else " (6 Runs, then R, resumes the run)"
        self.notify(f"no worker is running, so there is nothing to {command}{hint}", severity="warning")

    # --- command palette and export -------------------------------------------------------------------

    def get_system_commands(self, screen: Screen) -> Iterable[SystemCommand]:
        """The entries of the command palette: our own and no others."""
        return commands(self, screen)

    @property
    def screen_name(self) -> str:
        """The name of the screen of a run that is up, below any dialog; empty before there is one."""
        here = self._run_screens()
        return here[-1].NAME if here else ""

    def export_svg(self) -> Path:
        """Write the screen as `localdpo-SCREEN-TIME.svg` into the current folder and say so; its path."""
        name = self.screen_name or "screen"
        path = Path(f"localdpo-{name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(self.now()))}.svg")
        try:
            write_text(path, svg_of(self))
        except OSError as error:
            self.notify(f"{path}: cannot be written: {error.strerror}", severity="error")
        except UserError as error:
            self.notify(str(error), severity="error")
        else:
            self.notify(f"written: {path}")
        return path
