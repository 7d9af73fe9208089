"""SIGKILL at random moments, inside saves and inside reference passes; then the run resumes.

In the end every array of every kept checkpoint, adapter and optimizer, its step and its random key are those
of a run that nobody killed.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from tally import Tally
from tiny_folders import make_adapter, make_model_folder, recipe_text, write_pairs
from training_runs import files_of, write_recipe

from localdpo.records.events import read_events
from localdpo.records.rundir import RunDir

HERE = Path(__file__).resolve().parent
PATHS = os.pathsep.join(str(folder) for folder in (HERE, HERE.parent, HERE.parent / "train"))
STEPS, SAVE_EVERY = 12, 3
PAIRS = 24
KILLS_IN_A_RUN = 5


class Workers:
    """The process of killer.py."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "killer.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), PATHS)))}
            | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )

    def live(self, run: RunDir, cache: Path, kill: list[Any] | None) -> int:
        """The exit status of one worker of the run, -9 when it was killed."""
        job = {"run": str(run.path), "log": str(run.worker_log), "cache": str(cache), "kill": kill}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextmanager
def workers() -> Iterator[Workers]:
    """The process that forks workers, for as long as the context lasts."""
    started = Workers()
    with started.process:
        yield started
        assert started.process.stdin is not None
        started.process.stdin.close()


def make_recipe(folder: Path) -> str:
    """A recipe with what has state: dropout, micro-batches, a schedule, samples; its files below `folder`."""
    model = make_model_folder(folder / "model")
    make_adapter(folder / "sft", model)
    return recipe_text(
        model,
        write_pairs(folder / "pairs.jsonl", PAIRS),
        write_pairs(folder / "valid.jsonl", 4, start=50),
        adapter=str(folder / "sft"),
        train={"epochs": 2, "micro_batch_size": 3, "schedule": "cosine", "warmup": 3, "seed": 11},
        lora={"dropout": 0.2},
        eval={"every": 5, "samples": 1, "max_tokens": 4, "temperature": 1.0, "kl_every": 2, "kl_samples": 2},
        save={"every": SAVE_EVERY, "keep": 3},
    )


NAMES = {
    "anywhere": "kills at random moments",
    "save": "kills inside a save",
    "reference": "kills in the reference pass",
}


def moments(kind: str, seconds: float, rng: random.Random) -> Iterator[list[Any]]:
    """When to kill, without end: `seconds` is the length of a life that nobody ends."""
    for number in itertools.count():
        if kind == "anywhere":
            yield ["after", rng.uniform(0, seconds)]
        elif kind == "reference":
            yield ["event", "reference", rng.randint(1, PAIRS)]
        else:
            # Some twenty calls a save: every boundary of three saves is met in sixty kills.
            yield ["save", 1 + number % 60]


@dataclass
class Whole:
    """A run that nobody touched, and the process that forks workers.

    Attributes:
        folder: holds the files of the recipe, the run, and its cache.
        seconds: how long the run took.
        expected: every array of every checkpoint that the run kept.
    """

    forks: Workers
    folder: Path
    text: str
    seconds: float
    expected: dict[str, dict[str, np.ndarray]]

    @property
    def cache(self) -> Path:
        return self.folder / "cache"


@contextmanager
def undisturbed(folder: Path) -> Iterator[Whole]:
    """What the ends of disturbed runs are compared with."""
    text = make_recipe(folder)
    with workers() as forks:
        run = new_run(folder / "whole", text)
        began = time.monotonic()
        assert forks.live(run, folder / "cache", None) == 0, run.worker_log.read_text()
        yield Whole(forks, folder, text, time.monotonic() - began, kept(run))


def kill_runs(whole: Whole, folder: Path, kind: str, count: int, seed: int = 0) -> Tally:
    """Kill runs `count` times in all, a few times each; each is then resumed to its end and compared."""
    tally, forks = Tally(NAMES[kind]), whole.forks
    recipe = yaml.safe_load(whole.text)
    if kind == "reference":
        # The pass ahead of the first step gives the numbers of scoring as needed.
        recipe["train"]["reference"] = "ahead"
    text = yaml.safe_dump(recipe)
    when = moments(kind, whole.seconds, random.Random(f"{kind} {seed}"))
    for number in itertools.count():
        if tally.tried >= count:
            return tally
        run, cache = new_run(folder / f"run-{number}", text), folder / f"cache-{number}"
        for moment in itertools.islice(when, min(KILLS_IN_A_RUN, count - tally.tried)):
            code = forks.live(run, cache, moment)
            if code == -signal.SIGKILL:
                tally.trial(f"{moment} in {run.path}")
            elif code != 0:
                tally.trial(f"{moment} in {run.path}: exit code {code}", silent=True)
        code = forks.live(run, cache, None)
        log, wrong = run.worker_log.read_text(), differences(run, whole.expected)
        tally.verdict(
            f"{run.path}: exit code {code} in the end; {wrong}",
            lost=bool(wrong),
            silent=code != 0,
            traceback="Traceback" in log,
        )
        if code == 0 and not wrong:
            shutil.rmtree(run.path)
            shutil.rmtree(cache, ignore_errors=True)


def new_run(path: Path, text: str) -> RunDir:
    write_recipe(path, text)
    return RunDir(path)


def kept(run: RunDir) -> dict[str, dict[str, np.ndarray]]:
    """Every array of every checkpoint that the run kept."""
    return {path.name: files_of(path) for path in sorted(run.checkpoints.glob("step-*"))}


def differences(run: RunDir, expected: dict[str, dict[str, np.ndarray]]) -> list[str]:
    """What of an uninterrupted run's checkpoints is missing or other in this run; and a log without end."""
    found = kept(run)
    wrong = [
        f"{name}/{array}"
        for name, arrays in expected.items()
        if name in found
        for array, value in arrays.items()
        if not np.array_equal(found[name].get(array), value)
    ]
    last = max(expected)
    if last not in found:
        wrong.append(f"{last} is missing")
    if read_events(run.events)[-1].type != "run.finished":
        wrong.append("the log does not end with run.finished")
    return wrong
