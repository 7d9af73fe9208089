from __future__ import annotations

import errno
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from command import localdpo

from localdpo.cli.watch import SCREENS, active_run, print_frame, say_continues
from localdpo.core.atomic import disk_refusals
from localdpo.core.errors import UserError
from localdpo.launch.explain import CRASHED_EXIT
from localdpo.records.events import EventWriter
from localdpo.records.log import LogTail
from localdpo.records.rundir import RunDir, RunLock
from localdpo.records.series import RoundsDir

pytestmark = pytest.mark.slow

FAKE = str(Path(__file__).parent / "fake_worker.py")
# The real command with the worker replaced: argv is MODE, then the command's own arguments.
DRIVER = f"""
import functools, sys
import localdpo.launch.processes as launch
mode = sys.argv.pop(1)
launch.start_worker = functools.partial(launch.start_worker, command=(sys.executable, {FAKE!r}, mode))
from localdpo.cli.main import run
run()
"""
ESCAPES = re.compile(r"\x1b\[[0-9;?<>=]*[A-Za-z]|\x1b[()=>][A-Z0-9]?")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dpo.yaml").write_text("model: org/tiny\ndata: {train: pairs.jsonl}\n")


def make_run(name: str, age: float = 0.0, end: bool = True) -> RunDir:
    run = RunDir.create("runs", name, "model: org/tiny\n")
    with EventWriter(run.events) as log:
        log.write("run.started", total_steps=2, model="org/tiny", loss="sigmoid", recipe={})
        log.write("step", 1, metrics={"loss": 0.69, "rewards/margins": 0.1})
        if end:
            log.write("run.finished", 2, seconds=3.0)
    os.utime(run.events, (1e9 - age, 1e9 - age))
    return run


# --- one frame -----------------------------------------------------------------------------------------


def test_damaged_lines_of_the_log_are_told_beside_the_frame_and_in_it():
    run = make_run("late")
    with run.events.open("ab") as log:
        log.write(b"damage\n")
    done = localdpo("watch", "--once", "--screen", "live")
    assert done.returncode == 0
    line = f"{run.events}: 1 damaged line is skipped (line 4)"
    assert done.stderr == f"{line}\n"
    assert line in done.stdout


def test_no_number_in_a_log_ends_the_frame_or_the_table():
    run = make_run("odd", end=False)
    lines = (
        '"type":"step","step":2,"metrics":{"loss":NaN,"kl":-Infinity}',
        f'"type":"step","step":{"9" * 30},"metrics":{{"loss":1}}',
        f'"type":"eval","step":3,"metrics":{{"loss":{"9" * 400},"kl":1e999}}',
        f'"type":"run.started","total_steps":{"9" * 30},"memory_limit_gb":Infinity',
    )
    with run.events.open("a") as log:
        log.writelines(f'{{"v":1,"time":1.0,{line}}}\n' for line in lines)
    for words in (["watch", "odd", "--once", "--screen", "live"], ["runs"]):
        done = localdpo(*words)
        assert done.returncode == 0
        assert done.stderr == f"{run.events}: 1 damaged line is skipped (line 4)\n"
        assert "odd" in done.stdout


def test_one_frame_as_text():
    make_run("early", age=50)
    make_run("late")
    done = localdpo("watch", "--once", "--size", "90x20", "--screen", "live")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 20
    assert max(map(len, lines)) <= 90
    assert "\x1b" not in done.stdout
    assert "late" in lines[1]
    named = localdpo("watch", "early", "--once")
    assert "early" in named.stdout.splitlines()[1]
    assert len(named.stdout.splitlines()) == 36


def test_it_opens_on_runs_when_none_trains():
    make_run("late")
    done = localdpo("watch", "--once")
    assert "1 run, sorted by started" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--once", "--size", "90"], "--size 90: expected columns and rows, such as 120x36"),
        (["--size", "90x20"], "--size works only with --once"),
        (["--once", "--screen", "nowhere"], "--screen nowhere: expected one of live, samples"),
        (["nobody", "--once"], "no run named 'nobody'"),
        ([], "watch needs a terminal; --once prints one frame as text, --plain lines until the end"),
        (["--plain", "--once"], "--plain prints lines, not a screen: leave out --once and --screen"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], problem: str):
    make_run("late")
    done = localdpo("watch", *arguments)
    assert done.returncode == 2
    assert problem in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_without_runs_it_says_how_to_start_one():
    done = localdpo("watch", "--once")
    assert done.returncode == 2
    assert "no runs here; start one with `localdpo train RECIPE`" in done.stderr


# --- lines ---------------------------------------------------------------------------------------------


def test_plain_shows_a_run_that_has_ended_with_the_exit_code_of_its_end():
    make_run("late")
    done = localdpo("watch", "late", "--plain")
    assert done.returncode == 0
    assert re.search(r"^step 1/2 loss 0\.69", done.stdout, re.MULTILINE)
    assert re.search(r"^run.finished step 2/2", done.stdout, re.MULTILINE)
    assert "adapter" in done.stdout.splitlines()[-2] or "try it" in done.stdout.splitlines()[-1]
    left = make_run("left", end=False)
    with left.events.open("ab") as log:
        log.write(b"damage\n")
    done = localdpo("watch", "left", "--plain")
    assert done.returncode == CRASHED_EXIT
    assert f"{left.events}: 1 damaged line is skipped" in done.stderr
    assert "resume with: " in done.stderr.splitlines()[-1]


def test_plain_follows_a_run_until_its_worker_ends():
    run = make_run("live", end=False)
    lock = RunLock(run)
    lock.__enter__()

    def finish() -> None:
        with EventWriter(run.events) as log:
            log.write("run.finished", 2, seconds=3.0)
        lock.__exit__(None, None, None)

    timer = threading.Timer(0.5, finish)
    timer.start()
    done = localdpo("watch", "live", "--plain")
    timer.join()
    assert done.returncode == 0
    assert re.search(r"^run.finished step 2/2", done.stdout, re.MULTILINE)


def test_ctrl_c_leaves_a_run_that_continues():
    run = make_run("live", end=False)
    with RunLock(run):
        process = subprocess.Popen(
            (sys.executable, "-m", "localdpo", "watch", "live", "--plain"), stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        shown = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        shown += process.communicate(timeout=30)[0]
    assert process.returncode == 130
    assert "training continues" in shown


# --- which run -----------------------------------------------------------------------------------------


def test_the_run_that_trains_comes_before_a_newer_one():
    old = make_run("old", age=50, end=False)
    make_run("new")
    assert active_run(Path("runs")).name == "new"
    with RunLock(old):
        assert active_run(Path("runs")).name == "old"
    with pytest.raises(UserError, match="no runs here"):
        active_run(Path("nowhere"))


def test_a_series_is_opened_while_it_is_made_and_where_there_is_nothing_else():
    series = RoundsDir.create("runs", "again", "model: m\n")
    RunDir.create(series.path, "round-1", "model: org/tiny\n")
    assert active_run(Path("runs")).path == series.path
    assert "again  round-1" in localdpo("watch", "--once").stdout
    for words, message in (
        (["chat"], "runs: holds several runs; name one of them: again/round-1"),
        (["watch", "again", "--once", "--screen", "live"], "runs/again: --screen is for a single run"),
    ):
        done = localdpo(*words)
        assert done.returncode == 2
        assert message in done.stderr
    make_run("single")
    assert active_run(Path("runs")).name == "single"
    with RunLock(series):
        assert active_run(Path("runs")).path == series.path
        assert active_run(Path("runs"), single=True).name == "single"


@pytest.mark.parametrize(("command", "several"), [("rounds", "rounds"), ("sweep", "sweeps")])
def test_a_series_that_is_not_there_is_said_in_its_own_words(command: str, several: str):
    done = localdpo(command, "--resume", "--run", "again")
    start = f"runs: no {several} here; start one with `localdpo {command} RECIPE` or give --runs-dir"
    assert (done.returncode, done.stderr) == (2, f"error: {start}\n")
    make_run("single")
    assert localdpo(command, "--resume", "--run", "single").stderr == done.stderr


def test_how_to_come_back(capsys: pytest.CaptureFixture[str]):
    say_continues(RunDir("runs/dpo"), 12)
    say_continues(RunDir("my runs/dpo"), None)
    assert capsys.readouterr().out.splitlines() == [
        "training continues (process 12); return to the dashboard with: localdpo watch dpo",
        "training continues; return to the dashboard with: localdpo watch dpo --runs-dir 'my runs'",
    ]


def test_every_screen_is_known():
    assert len(set(SCREENS)) == 6


# --- `train` on a terminal -----------------------------------------------------------------------------


class Terminal:
    """A command on a terminal of its own; `text` is everything it wrote."""

    def __init__(self, *arguments: str) -> None:
        main, side = pty.openpty()
        os.set_inheritable(side, True)
        environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, *arguments],
            stdin=side, stdout=side, stderr=side, env=environment, start_new_session=True,
        )  # fmt: skip
        os.close(side)
        self._main = main
        self.text = ""

    def read(self, seconds: float = 0.1) -> None:
        if select.select([self._main], [], [], seconds)[0]:
            try:
                self.text += os.read(self._main, 1 << 16).decode(errors="replace")
            except OSError:  # the other end is closed
                time.sleep(seconds)

    def until(self, words: str, seconds: float = 30.0) -> None:
        deadline = time.monotonic() + seconds
        while words not in ESCAPES.sub("", self.text):
            assert time.monotonic() < deadline, f"no {words!r} in {ESCAPES.sub('', self.text)[-2000:]}"
            self.read()

    def press(self, keys: str) -> None:
        os.write(self._main, keys.encode())

    def leave(self) -> tuple[int, str]:
        """The exit code, and what was written after the dashboard gave the screen back."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < deadline:
            self.read()
        for _ in range(5):
            self.read(0.02)
        os.close(self._main)
        after = self.text.rsplit("\x1b[?1049l", 1)[-1]
        return self.process.wait(1), ESCAPES.sub("", after).replace("\r", "").strip()


def test_a_finished_run_ends_with_the_lines_of_plain():
    terminal = Terminal("finish", "train", "dpo.yaml")
    terminal.until("finished in 1m 05s")
    terminal.press("q")
    code, said = terminal.leave()
    assert code == 0
    assert "\x1b[?1049h" in terminal.text
    lines = said.splitlines()
    assert lines[0] == "finished in 1m 05s"
    assert lines[1] == "adapter: runs/dpo/checkpoints/LATEST"


def test_leaving_says_that_training_goes_on():
    terminal = Terminal("stop", "train", "dpo.yaml")
    terminal.until("waiting for a signal")
    terminal.press("q")
    code, said = terminal.leave()
    run = RunDir("runs/dpo")
    assert (code, run.is_running()) == (0, True)
    assert (
        said == f"training continues (process {run.pid()}); return to the dashboard with: localdpo watch dpo"
    )
    stop = localdpo("runs")
    assert "running" in stop.stdout
    pid = run.pid()
    assert pid is not None
    os.kill(pid, 2)
    deadline = time.monotonic() + 15
    while run.is_running() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert run.status() == "stopped"


@pytest.mark.long
def test_a_run_that_dies_is_told_on_the_screen_and_after_it():
    terminal = Terminal("sigkill", "train", "dpo.yaml")
    terminal.until("killed by SIGKILL after step 4 of 6")
    terminal.press("q")
    code, said = terminal.leave()
    assert code == 1
    assert said.splitlines()[0].startswith("error: the worker was killed by SIGKILL after step 4 of 6")
    assert "resume with: localdpo train --resume --run dpo" in said


def test_a_mistake_closes_the_dashboard_and_is_said_as_in_plain():
    terminal = Terminal("user-error", "train", "dpo.yaml")
    code, said = terminal.leave()
    assert code == 2
    assert said.splitlines() == ["error: org/tiny: no such model", "error: data.train: no such file"]
    assert not Path("runs/dpo").exists()


@pytest.mark.long
def test_a_worker_that_cannot_begin_closes_the_dashboard():
    terminal = Terminal("early", "train", "dpo.yaml")
    code, said = terminal.leave()
    assert code == 1
    assert said.startswith("error: the worker failed (exit code 1) before the run began")


@pytest.mark.long
def test_plain_opens_no_dashboard():
    terminal = Terminal("finish", "train", "dpo.yaml", "--plain")
    code, said = terminal.leave()
    assert code == 0
    assert "\x1b[?1049h" not in terminal.text
    assert "finished in 1m 05s" in said


@pytest.mark.parametrize("screen", ["live", "runs"])
def test_a_log_that_may_not_be_read_ends_the_dashboard_with_a_line(
    screen: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run = make_run("late")

    def refuse(tail: LogTail, max_bytes: int | None = None) -> list[tuple[int, bytes]]:
        raise PermissionError(errno.EACCES, "Permission denied", str(tail.path))

    monkeypatch.setattr(LogTail, "lines", refuse)
    with (
        pytest.raises(UserError, match=r"late/events\.jsonl: cannot be read or written \(Perm"),
        disk_refusals(),
    ):
        print_frame(Path("runs"), run, screen, "80x24")
    assert capsys.readouterr() == ("", "")
