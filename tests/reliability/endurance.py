"""Thousands of steps: does the memory of the worker, or of a viewer beside it, grow?"""

from __future__ import annotations

import os
import pty
import struct
import subprocess
import sys
import threading
import time
from fcntl import ioctl
from pathlib import Path
from termios import TIOCSWINSZ

import numpy as np
from tally import Tally
from tiny_folders import make_adapter, make_model_folder, recipe_text, write_pairs
from training_runs import write_recipe

from localdpo.records.events import read_events
from localdpo.records.rundir import RunDir

# A megabyte of growth in a thousand steps.
LIMIT_BYTES = 1e6
PAIRS = 64


def resident(pid: int) -> int:
    """Resident memory of a process in bytes (Linux)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def endure(folder: Path, steps: int) -> tuple[Tally, dict[str, float]]:
    """Train `steps` steps beside a viewer; the slopes of both after a fifth of them, in bytes a step."""
    tally = Tally(f"{steps:,} steps, worker and viewer")
    model = make_model_folder(folder / "model")
    make_adapter(folder / "sft", model)
    text = recipe_text(
        model,
        write_pairs(folder / "pairs.jsonl", PAIRS),
        write_pairs(folder / "valid.jsonl", 4, start=PAIRS),
        adapter=str(folder / "sft"),
        train={"epochs": -(-steps * 4 // PAIRS), "max_steps": steps, "learning_rate": 1e-5},
        eval={"every": 500, "samples": 1, "max_tokens": 4, "kl_every": 50, "kl_samples": 2},
        save={"every": 500},
    )
    run = RunDir(folder / "runs" / "long")
    write_recipe(run.path, text)
    environment = {**os.environ, "LOCALDPO_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    with run.worker_log.open("wb") as log:
        worker = subprocess.Popen(
            [sys.executable, "-m", "localdpo.train", str(run.path)], env=environment, stdout=log, stderr=log
        )
    viewer = view(run, environment)
    measured: list[tuple[int, int, int]] = []
    while worker.poll() is None:
        time.sleep(1.0)
        step = last_step(run)
        if step and viewer.poll() is None and worker.poll() is None:
            measured.append((step, resident(worker.pid), resident(viewer.pid)))
    is_alive = viewer.poll() is None
    viewer.terminate()
    viewer.wait(20)
    log_text = run.worker_log.read_text(errors="replace")
    settled = np.array([row for row in measured if row[0] > steps / 5], dtype=np.float64)
    slopes = {
        name: float(np.polyfit(settled[:, 0], settled[:, column], 1)[0])
        for column, name in ((1, "worker"), (2, "viewer"))
    }
    for name, slope in slopes.items():
        tally.trial(
            f"{name}: {slope * 1000 / 1e6:+.3f} MB a thousand steps", silent=slope * 1000 > LIMIT_BYTES
        )
    tally.verdict(
        f"worker ended with {worker.returncode}, viewer alive: {is_alive}",
        lost=worker.returncode != 0 or not is_alive,
        traceback="Traceback" in log_text,
    )
    return tally, slopes


def last_step(run: RunDir) -> int:
    """The last step in the end of the log; 0 for none."""
    try:
        with run.events.open("rb") as file:
            file.seek(max(0, run.events.stat().st_size - 20_000))
            tail = file.read()
    except FileNotFoundError:
        return 0
    scratch = run.path.parent / "tail.jsonl"
    scratch.write_bytes(tail[tail.find(b"\n") + 1 :])
    return max((event.step or 0 for event in read_events(scratch)), default=0)


def view(run: RunDir, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    """The dashboard on a terminal of 120x36 that somebody reads."""
    master, slave = pty.openpty()
    ioctl(slave, TIOCSWINSZ, struct.pack("HHHH", 36, 120, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "localdpo", "watch", run.name, "--runs-dir", str(run.path.parent)],
        env={**environment, "TERM": "xterm-256color"},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    threading.Thread(target=drain, args=(master,), daemon=True).start()
    return process


def drain(master: int) -> None:
    try:
        while os.read(master, 65536):
            pass
    except OSError:
        pass
    os.close(master)
