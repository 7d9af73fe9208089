"""The real program in a real terminal: keys by send-keys, the screen by capture-pane."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from localdpo.records.events import read_events
from localdpo.records.rundir import RunDir

ROOT = Path(__file__).parents[2]
# Small and quick, and long enough to press some keys meanwhile.
SHORT = (
    *("train.batch_size=1", "data.limit=24", "train.epochs=3", "save.every=10"),
    *("eval.every=40", "eval.pairs=2", "eval.samples=1", "eval.max_tokens=4", "eval.kl_pairs=0"),
)
STEP = re.compile(r"step ([\d,]+)/")
BRAILLE = re.compile("[\u2801-\u28ff]")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed"),
]


class Tmux:
    """A tmux server of its own with one window of 120 x 36."""

    def __init__(self, name: str, environment: dict[str, str], folder: Path) -> None:
        self._pid = folder / "command.pid"
        self._base = ["tmux", "-L", name, "-f", "/dev/null"]
        self._environment = environment
        self._run("new-session", "-d", "-x", "120", "-y", "36", "sleep 600")

    def start(self, *command: str) -> None:
        """Run `localdpo COMMAND` in the window; when it ends, its exit code is printed as EXIT CODE."""
        words = shlex.join([sys.executable, "-m", "localdpo", *command])
        inner = shlex.quote(f"echo $$ > {shlex.quote(str(self._pid))}; exec {words}")
        self._run(
            "respawn-pane", "-k", f"cd {shlex.quote(str(ROOT))}; sh -c {inner}; echo EXIT $?; sleep 600"
        )

    def press(self, key: str) -> None:
        self._run("send-keys", key)

    def screen(self) -> str:
        return self._run("capture-pane", "-p")

    def kill(self) -> None:
        self._run("kill-server")

    def pid(self) -> int:
        """The process id of the command in the window."""
        return int(self._pid.read_text())

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self._base, *arguments], env=self._environment, capture_output=True, text=True, check=True
        )
        return done.stdout

    def until(self, what: Callable[[str], bool], seconds: float = 40.0) -> str:
        """The screen as soon as `what` holds for it."""
        deadline = time.monotonic() + seconds
        while True:
            screen = self.screen()
            if what(screen):
                return screen
            assert time.monotonic() < deadline, screen
            time.sleep(0.2)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {**os.environ, "HF_HUB_OFFLINE": "1", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", "TMUX": "",
            "LOCALDPO_CACHE": str(tmp_path / "cache")}  # fmt: skip


@pytest.fixture
def tmux(tmp_path: Path, environment: dict[str, str]) -> Iterator[Tmux]:
    # A name of its own for each test: the server before may still be going down.
    server = Tmux(f"localdpo-test-{secrets.token_hex(6)}", environment, tmp_path)
    yield server
    server.kill()


def step_of(screen: str) -> int:
    """The step that the header shows; -1 before it shows one."""
    found = STEP.search(screen)
    return int(found[1].replace(",", "")) if found else -1


def steps_in(run: RunDir) -> int:
    """How many steps are in the log."""
    return sum(event.type == "step" for event in read_events(run.events))


def drawn(screen: str) -> int:
    """How much of the charts is drawn."""
    return len(BRAILLE.findall(screen))


@pytest.mark.timeout(180)
def test_a_run_from_start_to_end(tmux: Tmux, tmp_path: Path) -> None:
    runs_dir = tmp_path / "runs"
    run = RunDir(runs_dir / "dpo")
    tmux.start("train", "recipes/dpo.yaml", *SHORT, "--runs-dir", str(runs_dir))
    early = tmux.until(lambda screen: step_of(screen) >= 2)
    tmux.until(lambda screen: drawn(screen) > drawn(early) + 3 and step_of(screen) > step_of(early))

    # pause: the step count stands still, in the log too
    tmux.press("p")
    paused = tmux.until(lambda screen: "paused" in screen.splitlines()[1])
    count = steps_in(run)
    time.sleep(0.5)
    assert step_of(tmux.screen()) == step_of(paused)
    assert steps_in(run) == count
    tmux.press("p")
    tmux.until(lambda screen: step_of(screen) > step_of(paused))

    # leave and come back; paused again so that it does not end meanwhile
    tmux.press("p")
    tmux.until(lambda screen: "paused" in screen.splitlines()[1])
    tmux.press("q")
    left = tmux.until(lambda screen: "EXIT 0" in screen)
    assert (
        f"training continues (process {run.pid()}); return to the dashboard with: localdpo watch dpo" in left
    )
    assert run.is_running()
    tmux.start("watch", "--runs-dir", str(runs_dir))
    back = tmux.until(lambda screen: "paused" in screen)
    tmux.press("p")
    tmux.until(lambda screen: step_of(screen) > step_of(back))

    # the worker is killed: the screen says so and stays
    pid = run.pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    dead = tmux.until(lambda screen: "killed by SIGKILL" in screen, seconds=10)
    told = read_events(run.events)[-1]
    assert told.type == "run.crashed"
    # However long the folder of the run is, and wherever the line breaks.
    assert "localdpo train --resume --run dpo" in " ".join(dead.split())
    tmux.press("2")
    tmux.until(lambda screen: "reference" in screen)

    # resumed from the screen, to the end
    tmux.press("6")
    tmux.until(lambda screen: "crashed" in screen and "D delete" in screen)
    tmux.press("R")
    tmux.until(lambda screen: "finished" in screen.splitlines()[1], seconds=90)
    tmux.press("q")
    tmux.until(lambda screen: "EXIT 0" in screen)
    assert run.status() == "finished"
    assert "run.resumed" in {event.type for event in read_events(run.events)}


@pytest.mark.timeout(180)
@pytest.mark.long
def test_killing_the_dashboard_leaves_training_alone(tmux: Tmux, tmp_path: Path) -> None:
    runs_dir = tmp_path / "runs"
    options = ("train", "recipes/dpo.yaml", *SHORT, "train.max_steps=8", "--runs-dir", str(runs_dir))
    tmux.start(*options, "--run", "watched")
    watched = RunDir(runs_dir / "watched")
    tmux.until(lambda screen: step_of(screen) >= 1)
    os.kill(tmux.pid(), signal.SIGKILL)
    tmux.until(lambda screen: "EXIT 137" in screen)
    deadline = time.monotonic() + 60
    while watched.status() != "finished" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert watched.status() == "finished"

    command = [sys.executable, "-m", "localdpo", *options, "--run", "alone", "--plain"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    weights = [(runs_dir / name / "checkpoints" / "LATEST" / "adapters.safetensors").read_bytes()
               for name in ("watched", "alone")]  # fmt: skip
    assert weights[0] == weights[1]
