"""The process of every app ends when it is told to or its terminal goes, whatever the app waits for."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow

WATCH = "from localdpo.cli.watch import open_dashboard; open_dashboard(run.path.parent, run, None)"
# However busy the machine, the app has the time to leave by itself.
PATIENT = "from localdpo.dashboard import appbase; appbase._GRACE_SECONDS = 60.0\n"
# Without a request for answers, which would take a model.
COMPARE = """
from localdpo.dashboard.app import DashboardApp
from localdpo.dashboard.appbase import run_app
run_app(DashboardApp(run.path.parent, run, jump="compare"))
"""
LABEL = """
import sys
from pathlib import Path
Path("pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\\n')
sys.argv = ["localdpo", "prefs", "label", "pairs.jsonl"]
from localdpo.cli.main import run
run()
"""
# The main thread waits for a lock that nobody gives back, as for a full queue of frames; or it computes.
LOCKED = """
import threading
def stuck():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()
"""
BUSY = """
def stuck():
    while True:
        pass
"""
STUCK = """
from localdpo.dashboard.appbase import TerminalApp, run_app
class Stuck(TerminalApp):
    def on_ready(self):
        open("up", "w").close()
        stuck()
run_app(Stuck())
"""


class Terminal:
    """A process whose terminal is a pty of ours."""

    def __init__(self, folder: Path, code: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 36, 120, 0, 0))
        before = "from localdpo.records.rundir import RunDir; run = RunDir('runs/dpo')\n"
        (folder / "app.py").write_text(before + code)
        self.process = subprocess.Popen(
            [sys.executable, "app.py"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env={**os.environ, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        os.close(slave)
        self.shown = b""

    def read(self, seconds: float) -> None:
        """Take what it draws for a while, or it would wait for us."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.05)[0]:
                try:
                    self.shown += os.read(self.master, 1 << 16)
                except OSError:  # nobody has the other end any more
                    return

    def until(self, happens: Callable[[], object], seconds: float = 40.0) -> None:
        """Take what it draws until this is so; it must be within `seconds`."""
        deadline = time.monotonic() + seconds
        while not happens():
            assert time.monotonic() < deadline, self.shown[-2000:]
            self.read(0.1)

    def until_up(self) -> None:
        def is_up() -> bool:
            assert self.process.poll() is None, self.shown[-2000:]
            return b"\x1b[?1049h" in self.shown

        self.until(is_up)
        self.read(0.3)

    def hang_up(self) -> None:
        os.close(self.master)

    def ends(self, seconds: float) -> int:
        """Its exit code; it must come within `seconds`."""
        try:
            return self.process.wait(seconds)
        finally:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = RunDir.create(tmp_path / "runs", "dpo", "model: org/tiny\n")
    with EventWriter(run.events) as log:
        log.write("run.started", total_steps=6, recipe={}, model="org/tiny", loss="sigmoid", device="cpu")
        log.write("step", 1, metrics={"loss": 0.6})
    return tmp_path


@pytest.mark.parametrize("code", [WATCH, COMPARE, LABEL], ids=["watch", "compare", "label"])
@pytest.mark.every(3)
def test_an_app_ends_with_its_terminal(code: str, folder: Path):
    terminal = Terminal(folder, code)
    terminal.until_up()
    terminal.hang_up()
    terminal.ends(8.0)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
@pytest.mark.every(2)
def test_a_signal_gives_the_terminal_back(name: str, folder: Path):
    terminal = Terminal(folder, PATIENT + WATCH)
    terminal.until_up()
    terminal.process.send_signal(signal.Signals[name])
    terminal.until(lambda: b"\x1b[?1049l" in terminal.shown, seconds=2.0)
    assert terminal.ends(5.0) == 0


@pytest.mark.parametrize("stuck", [LOCKED, BUSY], ids=["locked", "busy"])
@pytest.mark.parametrize("how", ["SIGTERM", "hang up"])
@pytest.mark.every(4)
def test_a_stuck_app_ends_too(how: str, stuck: str, folder: Path):
    terminal = Terminal(folder, stuck + STUCK)
    terminal.until((folder / "up").exists)
    if how == "SIGTERM":
        terminal.process.send_signal(signal.SIGTERM)
        terminal.until(lambda: terminal.shown.endswith(b"\x1b[?25h"), seconds=4.0)
        assert terminal.ends(4.0) == 128 + signal.SIGTERM
    else:
        terminal.hang_up()
        assert terminal.ends(8.0) == 128 + signal.SIGHUP
