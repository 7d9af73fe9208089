"""What all apps share: themes, terminal filters, start and end, the screen as text or as a picture."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import signal
import termios
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Final, cast

from textual.app import App
from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.filter import LineFilter
from textual.screen import Screen

from localdpo.core.atomic import is_refusal
from localdpo.core.errors import USER_ERROR_EXIT, LocalDPOError
from localdpo.core.text import printable
from localdpo.dashboard import terminal
from localdpo.out import notification
from localdpo.out.console import Console

# Rich's pictures fetch a web font; ours must also work offline.
_WEB_FONTS: Final = re.compile(r"@font-face\s*\{.*?\}\s*", re.DOTALL)
_FONT: Final = "Fira Code, Menlo, DejaVu Sans Mono, Consolas, monospace"
_SIGNALS: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
_LOOK_SECONDS: Final = 0.5
# How long an app may take to exit after a signal before the process is ended.
_GRACE_SECONDS: Final = 3.0
# Back to the plain screen: no mouse, paste, focus or key reports, lines wrapped, the cursor shown.
_PLAIN_SCREEN: Final = (
    b"\x1b[?1000l\x1b[?1003l\x1b[?1015l\x1b[?1006l\x1b[?2004l\x1b[?1004l\x1b[?2048l\x1b[?7h\x1b[<u"
    b"\x1b[?1049l\x1b[?25h"
)


class TerminalApp(App[None]):
    """An app with the themes of this package.

    Attributes:
        abilities: what the terminal can show; one choice for all widgets.
        failure: what ended the app that a person must mend, such as a file that may not be read.
    """

    TITLE = "localdpo"
    CSS_PATH = Path(__file__).parent / "styles" / "app.tcss"

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self.abilities: terminal.Abilities = terminal.abilities_of(environment)
        self.failure: Exception | None = None
        super().__init__()
        # What Textual says of a crash, its colours among the text.
        self.error_console = Console(stderr=True)
        for name in terminal.THEME_NAMES:
            self.register_theme(terminal.theme_of(name))
        self.theme = "16" if self.abilities.colour and self.abilities.has_few_colours else "dark"

    @property
    def palette(self) -> terminal.Palette:
        """The colours of the theme, by meaning."""
        return terminal.PALETTES.get(self.theme, terminal.PALETTES["dark"])

    def get_line_filters(self) -> list[LineFilter]:
        filters = [*super().get_line_filters(), terminal.CharFilter(terminal.without_controls)]
        return filters if self.abilities.unicode else [*filters, terminal.CharFilter(terminal.to_ascii)]

    def notify(self, message: str, **options: Any) -> None:
        """Show `message` for a while; it is never parsed as markup, as names may look like it."""
        super().notify(printable(message), **{**options, "markup": False})

    def _handle_exception(self, error: Exception) -> None:
        """What a person must mend is raised where the app was run; Textual would print a traceback of it."""
        if isinstance(error, LocalDPOError) or is_refusal(error):
            self.fail(error)
        else:
            super()._handle_exception(error)

    def fail(self, error: Exception) -> None:
        """Leave; `run_app` raises `error` then."""
        self.failure = self.failure or error
        self.exit(return_code=USER_ERROR_EXIT)

    def alert(self, text: str) -> None:
        """Show `text` as a notification of the desktop."""
        if self._driver is not None and not self.is_headless:
            self._driver.write(notification(text))


class ScreenApp(TerminalApp):
    """An app with one screen, which Ctrl-C leaves."""

    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c", "quit", show=False, system=True)]

    def __init__(self, screen: Screen[None], environment: Mapping[str, str] = os.environ) -> None:
        super().__init__(environment)
        self._only = screen

    def on_mount(self) -> None:
        self.push_screen(self._only)


def app_of(node: DOMNode) -> TerminalApp:
    """The app that a widget or screen belongs to, with its type."""
    return cast("TerminalApp", node.app)


def run_app(app: TerminalApp) -> None:
    """Run `app` in the main thread until it is left, a signal comes, or its terminal goes.

    Raises its `failure`, if it has one.
    """
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        watch = _Watch(lambda: loop.call_soon_threadsafe(app.exit))
        before = {number: signal.signal(number, watch.handle) for number in _SIGNALS}
        watch.start()
        try:
            runner.run(app.run_async())
        finally:
            watch.stop()
            for number, handler in before.items():
                signal.signal(number, handler)
    if app.failure is not None:
        raise app.failure


class _Watch(threading.Thread):
    """Calls `leave` when a signal came or the terminal is gone; the process has `_GRACE_SECONDS` then.

    Textual writes to the terminal from a thread with a short queue. When the terminal is gone, that thread
    ends, the queue fills, and the app waits forever to put the next frame in: neither SIGTERM nor anything
    else that the event loop would have to handle gets through to it then. This thread waits for nothing that
    the app holds.
    """

    def __init__(self, leave: Callable[[], object]) -> None:
        super().__init__(name="terminal", daemon=True)
        self._leave = leave
        self._signalled = threading.Event()
        self._number: int | None = None
        self._ttys = [fd for fd in (0, 2) if os.isatty(fd)]
        self._modes = termios.tcgetattr(self._ttys[0]) if self._ttys else None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        self._number = number
        self._signalled.set()

    def stop(self) -> None:
        """The app has ended. After a signal the process is still to end in time."""
        self._signalled.set()

    def run(self) -> None:
        while not self._signalled.wait(_LOOK_SECONDS):
            if any(map(_is_gone, self._ttys)):
                self.handle(signal.SIGHUP, None)
        if self._number is None:
            return
        with contextlib.suppress(RuntimeError):  # the event loop is closed: the app has ended by itself
            self._leave()
        threading.Event().wait(_GRACE_SECONDS)
        self._restore()
        os._exit(128 + self._number)

    def _restore(self) -> None:
        """Restore the terminal, without waiting for one that no longer reads."""
        if self._modes is None:
            return
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(self._ttys[0], termios.TCSANOW, self._modes)
            fd = os.open(os.ttyname(self._ttys[0]), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
            os.write(fd, _PLAIN_SCREEN)
            os.close(fd)


def _is_gone(tty: int) -> bool:
    try:
        termios.tcgetattr(tty)
    except termios.error:
        return True
    return False


def frame_text(app: App[Any]) -> str:
    """The screen as text: one line a row, no escape codes, no trailing spaces."""
    width, _ = app.size
    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    # What the compositor shows, screens below a dialog included. Textual has no public call for it.
    frame: Any = app.screen._compositor.render_update(full=True, screen_stack=app._background_screens)
    console.print(frame, end="")
    assert isinstance(console.file, io.StringIO)
    lines = console.file.getvalue().split("\n")
    return "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"


def frame_svg(app: App[Any]) -> str:
    """The screen as an SVG picture that refers to no address but those of its name spaces."""
    svg = _WEB_FONTS.sub("", app.export_screenshot(title="localdpo"))
    return svg.replace("Fira Code", _FONT).replace(f"{_FONT}, monospace", _FONT)
