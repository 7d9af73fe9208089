"""Tests that are too long for every day, or more trials of those that are not: a series counts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from tally import Tally

ROOT = Path(__file__).resolve().parents[2]
# The suite makes a few of these trials; a series as many as it asks for.
TRIALS = "LOCALDPO_TEST_TRIALS"
COMMANDS = "tests/train/test_commands.py::test_random_commands_leave_the_weights_of_an_undisturbed_run"
RECIPES = "tests/reliability/long_recipes.py"
# What `make test` leaves out, and ten times as many examples of what must hold for every input.
LONG = ("-m", "long or hypothesis", "--hypothesis-profile", "long")


def run_tests(folder: Path, name: str, target: str, trials: int, options: tuple[str, ...] = ()) -> Tally:
    """Run pytest on `target`, with `trials` of what a test tries at random; one trial each test."""
    tally, report = Tally(name), folder / "report.xml"
    words = [
        *options,
        "-q",
        "--timeout",
        "0",
        "-o",
        "python_files=test_*.py long_*.py",
        f"--junit-xml={report}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *options, target],
        cwd=ROOT,
        env={**os.environ, TRIALS: str(trials)},
        capture_output=True,
    )
    assert report.exists(), done.stderr.decode()
    for case in ElementTree.parse(report).iter("testcase"):
        failed = case.find("failure") is not None or case.find("error") is not None
        tally.trial(f"{case.get('name')}: pytest {target}", silent=failed)
    return tally
