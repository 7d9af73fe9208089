"""The dashboard against its bars: first frame, keys, processor, a long log, and what it costs the training.

    make bench                                            # all of them
    python -m pytest -q -s --timeout 0 -o python_files='bench_*.py' tests/benchmarks/bench_dashboard.py

`localdpo watch` runs in a terminal of its own (a pseudo terminal of 120x36, 24-bit colour) and is measured
from outside: processor time is that of its process, delays are wall time from a key, or from the moment the
program takes the terminal over, until the text that answers it has been written. The one that writes the log
is this process. Wall times need a machine that is not busy with other things.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import statistics
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from localdpo.records.events import encode_event, read_events
from localdpo.records.rundir import RunDir, RunLock

COLUMNS, ROWS = 120, 36
POINTS = 20_000
LONG = 100_000
HERTZ = 5.0
SECONDS = 20.0
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b[=>]")
TAKEN_OVER = b"\x1b[?1049h"
ROOT = Path(__file__).parents[2]
STEPS = 1600  # of each of two trainings
BURST_SECONDS = 90.0
NEIGHBOURS = 51  # steps that one is compared with


def row(name: str, value: str, bar: str, within: bool) -> None:
    """One line of the table."""
    print(f"| {name:<58} | {value:>20} | {bar:>9} | {'yes' if within else 'NO':<3} |")


@pytest.fixture(scope="module", autouse=True)
def heading() -> None:
    print(f"\n\nload of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
    print(f"| {'what':<58} | {'measured':>20} | {'bar':>9} | met |")
    print(f"|{'-' * 60}|{'-' * 22}|{'-' * 11}|-----|")


class Terminal:
    """A program in a pseudo terminal; what it writes is read as it comes."""

    def __init__(self, *command: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}
        environment.pop("NO_COLOR", None)
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            cwd=ROOT,
        )
        os.close(slave)
        self.output = bytearray()
        self._closed = False
        self._fresh = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while not self._closed:
            if not select.select([self.master], [], [], 0.1)[0]:
                continue
            try:
                block = os.read(self.master, 1 << 16)
            except OSError:
                return
            with self._fresh:
                self.output += block
                self._fresh.notify_all()

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def wait_for(self, text: bytes, start: int = 0, seconds: float = 30.0) -> float:
        """The time at which `text` had been written after byte `start`, escape codes aside."""
        deadline = time.perf_counter() + seconds
        with self._fresh:
            while text not in self.output[start:] and text not in ESCAPES.sub(b"", self.output[start:]):
                if not self._fresh.wait(deadline - time.perf_counter()):
                    raise AssertionError(f"{text!r} was not written within {seconds} s")
        return time.perf_counter()

    def processor_seconds(self) -> float:
        """User and system time of the program so far."""
        tasks = list(Path(f"/proc/{self.process.pid}/task").glob("*/schedstat"))
        if tasks:
            return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
        said = subprocess.run(
            ["ps", "-o", "time=", "-p", str(self.process.pid)], capture_output=True, text=True
        )
        minutes, seconds = said.stdout.strip().rsplit(":", 1)
        return float(minutes.split(":")[-1]) * 60 + float(seconds)

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(10)
        self._closed = True
        self._reader.join()
        os.close(self.master)


def watch(run: RunDir) -> Terminal:
    """The dashboard of `run` on Live."""
    return Terminal(sys.executable, "-m", "localdpo", "watch", run.name, "--runs-dir", str(run.path.parent))


def step_line(step: int, noise: np.ndarray) -> bytes:
    """A step event of the size that training writes: 17 metrics, some 700 bytes."""
    rise = 1 - np.exp(-step / 5000)
    a, b, c = (float(value) for value in noise)
    metrics = {
        "loss": 0.69 - 0.2 * rise + 0.05 * a,
        "rewards/chosen": -0.3 * rise + 0.1 * b,
        "rewards/rejected": -1.2 * rise + 0.1 * c,
        "rewards/accuracies": min(1.0, max(0.0, 0.5 + 0.3 * rise + 0.1 * a)),
        "rewards/ties": 0.0,
        "rewards/margins": 0.9 * rise + 0.2 * b,
        "logps/chosen": -40.0 + a,
        "logps/rejected": -60.0 + b,
        "displacement": 0.3 + 0.1 * c,
        "logratio_per_token/chosen": -0.1 * rise + 0.01 * a,
        "logratio_per_token/rejected": -0.5 * rise + 0.02 * b,
        "grad_norm": 1.5 + 0.4 * abs(c),
        "learning_rate": 5e-6 * (1 - step / 200_000),
        "epoch": step / 10_000,
        "step_seconds": 0.2 + 0.01 * abs(a),
        "tokens_per_second": 1800 + 60 * b,
        "peak_memory_gb": 12.5,
        "kl": 0.05 * rise + 0.001 * c,
    }
    return encode_event("step", step, 1_700_000_000 + step * 0.2, {"metrics": metrics})


def make_run(folder: Path, name: str, steps: int, end: bool) -> RunDir:
    """A run with a log of `steps` steps and an evaluation every 200."""
    run = RunDir.create(folder, name, "model: org/made-up\n")
    noise = np.random.default_rng(0).standard_normal((steps + 1, 3))
    start = {"model": "org/made-up", "loss": "sigmoid", "total_steps": 2 * steps, "device": "metal"}
    lines = [encode_event("run.started", None, 1_700_000_000, {**start, "recipe": {"loss": {"beta": 0.1}}})]
    for step in range(1, steps + 1):
        lines.append(step_line(step, noise[step]))
        if step % 200 == 0:
            metrics = {"loss": 0.6, "rewards/margins": 0.5, "rewards/accuracies": 0.7, "kl": 0.03}
            lines.append(encode_event("eval", step, 1_700_000_000 + step * 0.2, {"metrics": metrics}))
    if end:
        lines.append(encode_event("run.stopped", steps, 1_700_000_000 + steps * 0.2, {}))
    run.events.write_bytes(b"".join(lines))
    return run


class Growing:
    """Writes a step to the log of a run HERTZ times a second, holding its lock, as a worker does."""

    def __init__(self, run: RunDir, steps: int) -> None:
        self._run, self._step = run, steps
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._lock = RunLock(run)

    def _write(self) -> None:
        noise = np.random.default_rng(1)
        with self._run.events.open("ab", buffering=0) as log:
            while not self._ended.wait(1 / HERTZ):
                self._step += 1
                log.write(step_line(self._step, noise.standard_normal(3)))

    def __enter__(self) -> Growing:
        self._lock.acquire()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._lock.release()


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_run(tmp_path_factory.mktemp("still"), "still", POINTS, end=True)


@pytest.fixture
def growing(tmp_path: Path) -> Iterator[RunDir]:
    run = make_run(tmp_path, "growing", POINTS, end=False)
    with Growing(run, POINTS):
        yield run


def test_first_frame(still: RunDir) -> None:
    shown, started = [], []
    for _ in range(5):
        terminal = watch(still)
        taken = terminal.wait_for(TAKEN_OVER)
        # The last step in the header: the whole log was read and drawn.
        seen = terminal.wait_for(f"step {POINTS:,}/".encode(), terminal.output.find(TAKEN_OVER))
        shown.append(seen - taken)
        started.append(seen - terminal.began)
        terminal.close()
    value = statistics.median(shown)
    row(f"first frame with 6 charts x {POINTS:,} points", f"{value * 1000:.0f} ms", "500 ms", value <= 0.5)
    print(
        f"|   from the start of Python, imports included {' ' * 14} | {statistics.median(started):>18.2f} s |"
    )


def test_from_key_to_screen(growing: RunDir) -> None:
    terminal = watch(growing)
    terminal.wait_for(b"smoothed 0.9")
    time.sleep(1.0)
    delays = []
    answers = ("smoothed 0.97", "smoothed 0.99", "not smoothed", "smoothed 0.6", "smoothed 0.9")
    for turn in range(60):
        time.sleep(0.11 + 0.013 * (turn % 7))  # at every place between two updates
        start, pressed = len(terminal.output), time.perf_counter()
        terminal.press("s")
        delays.append(terminal.wait_for(answers[turn % 5].encode(), start) - pressed)
    terminal.close()
    slow = float(np.percentile(delays, 95))
    median = f"median {statistics.median(delays) * 1000:.0f}"
    row(
        "key to screen, smoothing, while it is updated, p95",
        f"{median}, {slow * 1000:.0f} ms",
        "50 ms",
        slow <= 0.05,
    )


def share_of_a_core(run: RunDir) -> float:
    terminal = watch(run)
    terminal.wait_for(b"smoothed 0.9")
    time.sleep(3.0)
    before, began = terminal.processor_seconds(), time.perf_counter()
    time.sleep(SECONDS)
    share = (terminal.processor_seconds() - before) / (time.perf_counter() - began)
    terminal.close()
    return share


def test_processor_while_updated(growing: RunDir) -> None:
    share = share_of_a_core(growing)
    row(
        f"processor, 6 charts x {POINTS:,} points, {HERTZ:g} updates/s",
        f"{share:.1%} of a core",
        "10%",
        share <= 0.1,
    )


def test_processor_when_idle(still: RunDir) -> None:
    share = share_of_a_core(still)
    row("processor, nothing new", f"{share:.1%} of a core", "2%", share <= 0.02)


def test_a_long_log(tmp_path: Path) -> None:
    run = make_run(tmp_path, "long", LONG, end=True)
    size = run.events.stat().st_size / 1e6
    walls, processor = [], []
    for _ in range(5):
        terminal = watch(run)
        taken = terminal.wait_for(TAKEN_OVER)
        before = terminal.processor_seconds()
        seen = terminal.wait_for(f"step {LONG:,}/".encode(), terminal.output.find(TAKEN_OVER))
        walls.append(seen - taken)
        processor.append(terminal.processor_seconds() - before)
        terminal.close()
    value = statistics.median(walls)
    row(f"a log of {LONG:,} steps ({size:.0f} MB) on the screen", f"{value:.2f} s", "1.5 s", value <= 1.5)
    print(f"|   processor time of it {' ' * 36} | {statistics.median(processor):>18.2f} s |")


def train(folder: Path, name: str, with_viewer: bool) -> tuple[np.ndarray, np.ndarray]:
    """Trains the demo for STEPS steps: when each ended, [STEPS] Unix seconds, and the viewer's work.

    The work is [n, 2]: Unix time, and the processor seconds that the viewer had taken by then. The steps are
    the same ones every time.
    """
    never = [f"{option}=100000" for option in ("eval.every", "eval.kl_every", "save.every")]
    options = ["train.epochs=1000", f"train.max_steps={STEPS}", *never]
    run = RunDir(folder / name)
    command = [sys.executable, "-m", "localdpo", "train", "recipes/dpo.yaml", "--plain", "--run", name]
    process = subprocess.Popen(
        [*command, "--runs-dir", str(folder), *options],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not run.events.exists() or b'"step"' not in run.events.read_bytes():
        assert process.poll() is None
        time.sleep(0.2)
    work: list[tuple[float, float]] = []
    if with_viewer:
        terminal = watch(run)
        terminal.wait_for(b"smoothed 0.9")
        while process.poll() is None:
            work.append((time.time(), terminal.processor_seconds()))
            time.sleep(0.02)
        terminal.close()
    assert process.wait() == 0
    ends = [event.time for event in read_events(run.events) if event.type == "step"]
    return np.asarray(ends), np.asarray(work)


def running_median(values: np.ndarray, width: int) -> np.ndarray:
    """The median of `width` (odd) neighbours of each value, fewer at the ends."""
    padded = np.pad(values, width // 2, constant_values=np.nan)
    return np.nanmedian(np.lib.stride_tricks.sliding_window_view(padded, width), axis=1)


def test_training_beside_a_viewer(tmp_path: Path) -> None:
    """The demo trained twice, with a viewer and without: what its work costs the steps it falls into.

    Two trainings of the same steps differ by several percent, as the machine gets faster and slower over
    minutes. So a step is compared with itself in the other training and with its neighbours, and the excess
    is fitted to the processor time that the viewer took meanwhile.
    """
    ends, work = train(tmp_path, "watched", with_viewer=True)
    alone, _ = train(tmp_path, "alone", with_viewer=False)
    seconds, seconds_alone = np.diff(ends), np.diff(alone)
    ratio = seconds / seconds_alone
    whole = float(seconds.sum() / seconds_alone.sum() - 1)
    excess = (ratio / running_median(ratio, NEIGHBOURS) - 1) * seconds_alone
    used = np.diff(np.interp(ends, work[:, 0], work[:, 1]))
    # At first the viewer may draw as it likes, see dashboard/feed.py: that is three seconds of work at most.
    begun = ends[1:] > work[0, 0] + BURST_SECONDS
    excess, used, seconds = excess[begun], used[begun], seconds[begun]
    centred = used - used.mean()
    slope = float((centred * excess).sum() / (centred**2).sum())
    left = excess - excess.mean() - slope * centred
    spread = float(
        np.sqrt((centred**2 * left**2).sum()) / (centred**2).sum()
    )  # whatever the steps' variances
    share = float(used.sum() / seconds.sum())
    value, error = slope * share, spread * share
    row(
        f"training with a viewer: what its work costs (error {error:.2%})",
        f"{value:+.2%}",
        "1%",
        value + 1.96 * error <= 0.01,  # an error larger than the bar shows nothing
    )
    print(f"|   processor of the viewer meanwhile {' ' * 22} | {share:>10.1%} of a core |")
    print(f"|   a second of it delays the training by {' ' * 18} | {slope:>11.2f} +- {spread:.2f} |")
    print(f"|   the whole of both trainings, their drift included {' ' * 6} | {whole:>+20.1%} |")
