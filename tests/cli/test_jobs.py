from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from localdpo.launch import Job, start_job

TALKER = """
import signal, sys, time
if sys.argv[1] == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("one", flush=True)
sys.stdout.write("half")
sys.stdout.flush()
if sys.argv[1] != "short":
    time.sleep(60)
"""


def talker(tmp_path: Path, mode: str) -> Job:
    log = tmp_path / "log"
    with log.open("wb") as output:
        return Job(subprocess.Popen([sys.executable, "-c", TALKER, mode], stdout=output), log)


def first_lines(job: Job) -> list[str]:
    lines: list[str] = []
    while not lines:
        lines = job.lines()
        time.sleep(0.01)
    return lines


def test_a_command_of_localdpo_runs_beside_us(tmp_path: Path):
    job = start_job(["--version"], tmp_path / "new" / "log")
    assert job.wait(60) == 0
    assert job.lines()[0].startswith("localdpo ")
    assert job.lines() == []
    refused = start_job(["runs", "--nonsense"], tmp_path / "new" / "log")
    assert refused.wait(60) == 2
    assert any("nonsense" in line for line in refused.lines())


def test_lines_come_when_they_are_whole_or_the_end_has_come(tmp_path: Path):
    job = talker(tmp_path, "long")
    assert first_lines(job) == ["one"]
    assert job.lines() == []
    job.terminate()
    assert job.wait(10) == -signal.SIGTERM
    assert job.lines() == ["half"]
    job.terminate()


@pytest.mark.parametrize("mode", ["stubborn"])
def test_a_second_request_to_end_is_obeyed_by_all(mode: str, tmp_path: Path):
    job = talker(tmp_path, mode)
    first_lines(job)
    job.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        job.wait(0.2)
    assert job.returncode is None
    job.terminate()
    assert job.wait(10) == -signal.SIGKILL
