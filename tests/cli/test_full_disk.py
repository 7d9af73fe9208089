"""A full disk is told in one line with bytes needed and free, by the command where the worker could not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localdpo.core.atomic import LEAST_BYTES, is_full
from localdpo.core.errors import UserError
from localdpo.launch.explain import explain_death
from localdpo.launch.processes import start_worker
from localdpo.records.rundir import RunDir

KIB = 1024


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("takes the right to mount a file system")
    if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, left: int) -> None:
    (folder / "fill").write_bytes(bytes(max(0, shutil.disk_usage(folder).free - left)))


@pytest.mark.parametrize("left", [0, 4 * KIB, 16 * KIB, 60 * KIB])
def test_the_command_says_that_the_disk_is_full_where_the_worker_could_not(left: int, small: Path):
    run = RunDir.create(small, "dpo", "model: org/tiny\n")
    fill(small, left)
    assert is_full(small)
    for code in (1, 2, -6):
        (line,) = explain_death(code, run)
        assert line == (
            f"{run.path}: no space left on the disk (or over quota): {LEAST_BYTES:,} bytes needed, "
            f"{left:,} free; make room and run the same command again"
        )
    with pytest.raises(UserError, match=f"65,536 bytes needed, {left:,} free"):
        start_worker(run, command=[sys.executable, "-c", ""])
    assert run.discard()
    with pytest.raises(UserError, match="no space left"):
        RunDir.create(small, "other", "model: org/tiny\n" + "#" * (left + 200 * KIB))
    assert not (small / "other").exists()


def test_a_disk_with_room_is_not_blamed(tmp_path: Path):
    run = RunDir.create(tmp_path, "dpo", "model: org/tiny\n")
    assert not is_full(tmp_path)
    assert explain_death(1, run)[0].startswith("the worker failed (exit code 1) before the run began")
