"""Two commands on one run folder at once: one of them trains, the other says one line, nothing is lost."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

from kills import Whole, differences
from tally import Tally

from localdpo.records.rundir import RunDir

MAIN = [sys.executable, "-m", "localdpo"]
LONGEST_DELAY = 3.0


def race_commands(whole: Whole, folder: Path, count: int, seed: int = 0) -> Tally:
    """Start two `localdpo train` on one new name, `count` times, at random distances in time."""
    tally = Tally("two commands on one folder")
    rng = random.Random(seed)
    recipe = folder / "recipe.yaml"
    recipe.write_text(whole.text)
    for number in range(count):
        name = f"r{number}"
        first = start(recipe, name, folder, whole.cache, [])
        time.sleep(rng.choice((0.0, 0.0, rng.uniform(0, LONGEST_DELAY))))
        # The second one sometimes wants another recipe, and must not get it.
        other = ["loss.beta=0.3"] if rng.random() < 0.5 else []
        second = start(recipe, name, folder, whole.cache, other)
        ends = [process.communicate(timeout=120) for process in (first, second)]
        codes, said = [first.returncode, second.returncode], [out + err for out, err in ends]
        run = RunDir(folder / "runs" / name)
        won = codes.index(0) if 0 in codes else None
        wrong = ["no folder"] if not run.path.exists() else []
        if won is not None and not wrong and not (won == 1 and other):
            wrong = differences(run, whole.expected)
        refused = [text for text, code in zip(said, codes, strict=True) if code == 2]
        # Both may end well: the second one came after the first had finished.
        told = sorted(codes) in ([0, 0], [0, 2]) and all("error: " in text for text in refused)
        tally.trial(
            f"{name}: exit codes {codes}; {wrong}; {[text[-200:] for text in said]}",
            lost=won is None or bool(wrong),
            silent=not told,
            traceback=any("Traceback" in text for text in said),
        )
    return tally


def start(recipe: Path, name: str, folder: Path, cache: Path, overrides: list[str]) -> subprocess.Popen[str]:
    """A `localdpo train` of the run `name`."""
    return subprocess.Popen(
        [
            *MAIN,
            "train",
            str(recipe),
            *overrides,
            "--plain",
            "--run",
            name,
            "--runs-dir",
            str(folder / "runs"),
        ],
        env={**os.environ, "LOCALDPO_CACHE": str(cache), "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
