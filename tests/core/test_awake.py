"""A Mac is kept awake while a process works, by a helper that dies with it and holds nothing of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from localdpo.core.process import HELD, keep_awake
from localdpo.launch.processes import start_worker
from localdpo.records.rundir import RunDir

# As macOS' own does: it ends with the process of -w. What it was given, and what it holds, is written down.
CAFFEINATE = """#!/bin/sh
echo "$@" > "$TOLD.new"
for fd in 0 1 2 3 4 5 6 7 8 9; do
    [ -e "/proc/$$/fd/$fd" ] && echo "$fd $(readlink /proc/$$/fd/$fd)" >> "$TOLD.new"
done
echo "process $$" >> "$TOLD.new"
mv "$TOLD.new" "$TOLD"
for last in "$@"; do pid=$last; done
while kill -0 "$pid" 2>/dev/null; do sleep 0.05; done
"""
WORKER = """
import signal, sys
from localdpo.core.process import keep_awake
from localdpo.records.rundir import RunDir, RunLock
sys.platform = "darwin"
with RunLock(RunDir(sys.argv[1])):
    print(keep_awake(), keep_awake(), flush=True)
    if sys.argv[2:] != ["quick"]:
        signal.pause()
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the fake `caffeinate`, first on the path, says what it was asked."""
    helper = tmp_path / "bin" / HELD
    helper.parent.mkdir()
    helper.write_text(CAFFEINATE)
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{helper.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    monkeypatch.delenv("LOCALDPO_CAFFEINATE", raising=False)
    keep_awake.cache_clear()
    return tmp_path / "told"


def until(happens: Callable[[], object], seconds: float = 15.0) -> None:
    began = time.monotonic()
    while not happens():
        assert time.monotonic() - began < seconds, "it did not happen in time"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, if only to wait for someone to ask how."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGINT])
def test_the_helper_ends_with_the_worker_and_holds_neither_its_lock_nor_its_pipes(
    death: signal.Signals, told: Path, tmp_path: Path
):
    run = RunDir.create(tmp_path, "dpo", "model: m\n")
    worker = start_worker(run, command=[sys.executable, "-c", WORKER])
    until(told.exists)
    asked, *descriptors, named = told.read_text().splitlines()
    assert asked == f"-i -s -w {worker.pid}"
    # What a shell opens for itself is its own script and the file that it writes.
    own = {f"{told}.new", str(tmp_path / "bin" / HELD)}
    assert {line.partition(" ")[2] for line in descriptors} - own == {"/dev/null"}
    helper = int(named.split()[1])
    assert not is_gone(helper)
    assert worker.pid is not None
    os.kill(worker.pid, death)
    worker.wait()
    assert not run.is_running()
    until(lambda: is_gone(helper))
    assert run.worker_log.read_text().startswith("caffeinate caffeinate\n")


def test_it_is_asked_for_once_and_only_on_a_mac(told: Path, monkeypatch: pytest.MonkeyPatch):
    assert keep_awake() == ""
    keep_awake.cache_clear()
    monkeypatch.setattr(sys, "platform", "darwin")
    for off in ("off", "0", "OFF"):
        monkeypatch.setenv("LOCALDPO_CAFFEINATE", off)
        assert keep_awake() == "off (LOCALDPO_CAFFEINATE)"
        keep_awake.cache_clear()
    monkeypatch.delenv("LOCALDPO_CAFFEINATE")
    monkeypatch.setenv("PATH", "/nowhere")
    assert keep_awake() == "off (caffeinate: No such file or directory)"
    keep_awake.cache_clear()
    assert not told.exists()


def test_a_process_that_ends_by_itself_leaves_no_helper_and_no_warning(told: Path, tmp_path: Path):
    run = RunDir.create(tmp_path, "dpo", "model: m\n")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WORKER, str(run.path), "quick"],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert (done.stdout, done.stderr) == ("caffeinate caffeinate\n", "")
