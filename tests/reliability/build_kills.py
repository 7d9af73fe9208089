"""SIGKILL at random moments of `prefs build`, then resume: the same files, nothing made or asked again."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from building import FILES, rows_in, write_prompts
from tally import Tally
from tiny_folders import ending_model, make_adapter, make_model_folder

HERE = Path(__file__).resolve().parent
PROMPTS = 12


class Builds:
    """The process of killed_build.py."""

    def __init__(self, prompts: Path, model: Path, adapter: Path) -> None:
        self.job = {"prompts": str(prompts), "model": str(model), "adapter": str(adapter)}
        folders = [os.environ.get("PYTHONPATH", ""), str(HERE.parent), str(HERE.parent / "prefs")]
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "killed_build.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(filter(None, folders)), "TOKENIZERS_PARALLELISM": "false"},
        )

    def build(self, folder: Path, delay: float | None, **options: Any) -> int:
        """The exit status of one build, -9 when it was killed."""
        folder.mkdir(exist_ok=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {**self.job, "folder": str(folder), "delay": delay, "options": options}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@contextmanager
def builds(folder: Path) -> Iterator[Builds]:
    """The process that forks builds, with a model whose answers end, for as long as the context lasts."""
    plain = make_model_folder(folder / "plain")
    make_adapter(folder / "sft", plain)
    model = ending_model(folder / "model", plain)
    one = Builds(write_prompts(folder / "prompts.jsonl", PROMPTS), model, folder / "sft")
    with one.process:
        yield one
        assert one.process.stdin is not None
        one.process.stdin.close()


def kill_builds(folder: Path, count: int, seed: int = 0) -> Tally:
    """Kill builds `count` times in all: candidates that are compared (n = 2), and more, which are scored."""
    tally = Tally("kills in a prefs build")
    rng = random.Random(seed)
    with builds(folder) as forks:
        for n, kills in ((2, count - count // 2), (3, count // 2)):
            if not kills:
                continue
            whole = folder / f"whole-{n}"
            assert forks.build(whole, None, n=n) == 0
            # The first build waits for imports, which none of the killed ones do.
            began = time.monotonic()
            assert forks.build(folder / f"timed-{n}", None, n=n) == 0
            length = time.monotonic() - began
            expected, goal = content(whole), tally.tried + kills
            for number in itertools.count():
                if tally.tried >= goal:
                    break
                killed = folder / f"killed-{n}-{number}"
                code, times = -signal.SIGKILL, 0
                while code == -signal.SIGKILL:
                    delay = rng.uniform(0, 0.8 * length) if tally.tried < goal else None
                    code = forks.build(killed, delay, n=n)
                    if code == -signal.SIGKILL:
                        times += 1
                        tally.trial(f"{killed} after {delay} s")
                wrong = problems(killed, expected, n, times)
                tally.verdict(f"{killed}: exit code {code}; {wrong}", lost=bool(wrong), silent=code != 0)
    return tally


def problems(folder: Path, expected: dict[str, bytes], n: int, killed: int) -> list[str]:
    """What is wrong with a build that was killed `killed` times and then finished."""
    wrong = [f"{name} is not that of an uninterrupted build" for name in differing(folder, expected)]
    wrong += [f"made again: {one}" for one in made_again(folder / "parts.jsonl")]
    wrong += [f"asked again: {one}" for one in made_again(folder / "asked.jsonl")]
    asked = Counter(tuple(line) for line in rows_in(folder / "asked.jsonl") if isinstance(line, list))
    # Asked in vain was at most the one question in flight at each kill.
    if sum(asked.values()) - len(asked) > killed:
        wrong.append(f"{sum(asked.values()) - len(asked)} questions were asked in vain in {killed} kills")
    keys = [row["key"] for row in valid_lines(folder / "build/verdicts.jsonl")]
    if not len(keys) == len(set(keys)) == len(asked):
        wrong.append(f"{len(keys)} verdicts of {len(set(keys))} keys for {len(asked)} questions")
    records = rows_in(folder / "build/candidates.jsonl")[1:]
    if not len({(row["prompt"], row["contestant"]) for row in records}) == len(records) == PROMPTS * n:
        wrong.append(f"{len(records)} candidates instead of {PROMPTS * n}")
    return wrong


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "build" / name).read_bytes() for name in FILES}


def differing(folder: Path, expected: dict[str, bytes]) -> list[str]:
    found = content(folder)
    return [name for name, data in expected.items() if found[name] != data]


def made_again(log: Path) -> list[Any]:
    """What was made in a build although the folder had it when that build started."""
    there: set[Any] = set()
    again = []
    for line in rows_in(log):
        if isinstance(line, dict):
            there = {tuple(one) if isinstance(one, list) else one for one in line["there"]}
        elif log.name == "parts.jsonl":
            again += [one for one in line if one in there]
        elif tuple(line) in there:
            again.append(line)
    return again


def valid_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal, without those that a kill cut."""
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
