"""A real volume that fills up: `localdpo train` on it, then room is made and the run resumes.

Needs root on Linux (it mounts a tmpfs). Every try must end with 0, or with 2 and one line that tells the
bytes needed and free; what was saved before stays whole, and the resumed run ends as one that had room.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kills import Whole, differences
from tally import Tally

from localdpo.core.atomic import verified_digests
from localdpo.records.rundir import RunDir

MAIN = [sys.executable, "-m", "localdpo"]
TOLD = re.compile(r"error: .*[\d,]+ bytes needed.*[\d,]+ free")


def can_mount() -> bool:
    """Whether this process may make a volume of its own."""
    return sys.platform == "linux" and os.geteuid() == 0 and Path("/bin/mount").exists()


@contextmanager
def volume(folder: Path, size: int) -> Iterator[Path]:
    """An empty volume of `size` bytes at `folder` for as long as the context lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def make_room(folder: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def fill_levels(whole: Whole, folder: Path, count: int) -> Tally:
    """Train on `count` volumes that have room for less and less of a run."""
    tally = Tally("full disks")
    recipe = folder / "recipe.yaml"
    recipe.write_text(whole.text)
    used = sum(path.stat().st_size for path in (whole.folder / "whole").rglob("*") if path.is_file())
    # Half of the levels lie below 128 KiB: there even the explanation has no room.
    low = [4096 * (1 + level) for level in range(count // 2)][:32]
    step = (2 * used) // max(1, count - len(low))
    for size in [*low, *(131_072 + step * level for level in range(count - len(low)))]:
        with volume(folder / "volume", size) as full:
            tally_one(tally, full, recipe, whole, size)
    return tally


def tally_one(tally: Tally, full: Path, recipe: Path, whole: Whole, size: int) -> None:
    run = RunDir(full / "runs" / "r")
    train = ["train", str(recipe), "--plain", "--run", "r", "--runs-dir", str(run.path.parent)]
    code, said = command(train, whole.cache)
    problems = [line for path in run.checkpoints.glob("step-*") for line in verified_digests(path)[1]]
    told = code == 0 or (code == 2 and TOLD.search(said) is not None)
    make_room(full, 2**26)
    again, said_again = command(train, whole.cache)
    wrong = differences(run, whole.expected) if again == 0 else [f"exit code {again}: {said_again[-300:]}"]
    tally.trial(
        f"{size} bytes: exit code {code}, {said[-300:]!r}; {problems}; {wrong}",
        lost=bool(problems or wrong),
        silent=not told,
        traceback="Traceback" in said + said_again,
    )


def command(arguments: list[str], cache: Path) -> tuple[int, str]:
    """Exit code and output of a localdpo command."""
    done = subprocess.run(
        [*MAIN, *arguments],
        env={**os.environ, "LOCALDPO_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr
