"""SIGKILL at random moments, then resume: the same files, nothing that is there is made or asked again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from building import FILES, ending_model, rows_in, write_prompts

TESTS = Path(__file__).resolve().parents[1]
KILLS = 50
PROMPTS = 12


class Client:
    """The process of killed_build.py."""

    def __init__(self, prompts: Path, model: Path, adapter: Path) -> None:
        self.job = {"prompts": str(prompts), "model": str(model), "adapter": str(adapter)}
        folders = os.pathsep.join([str(TESTS), str(TESTS / "prefs")])
        self.process = subprocess.Popen(
            [sys.executable, str(TESTS / "prefs/killed_build.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": folders, "TOKENIZERS_PARALLELISM": "false"},
        )

    def build(self, folder: Path, delay: float | None, **options: Any) -> int:
        """The exit status of one run, -9 when it was killed."""
        folder.mkdir(exist_ok=True)
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        job = {**self.job, "folder": str(folder), "delay": delay, "options": options}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def client(tiny_model: Path, sft_adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("killed")
    model = ending_model(folder / "model", tiny_model)
    one = Client(write_prompts(folder / "prompts.jsonl", PROMPTS), model, sft_adapter)
    with one.process:
        yield one
        assert one.process.stdin is not None
        one.process.stdin.close()


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / "build" / name).read_bytes() for name in FILES}


def made_again(log: Path) -> list[Any]:
    """What was made in a run although the folder had it when the run started."""
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


# Candidates that are compared, and more that are scored.
@pytest.mark.parametrize(("n", "kills"), [(2, 30), (3, KILLS - 30)])
def test_killed_at_random_moments(client: Client, tmp_path: Path, n: int, kills: int) -> None:
    whole = tmp_path / "whole"
    assert client.build(whole, None, n=n) == 0
    started = time.monotonic()
    assert client.build(tmp_path / "timed", None, n=n) == 0
    length = time.monotonic() - started
    assert content(tmp_path / "timed") == content(whole)
    rng = random.Random(n)
    left, number = kills, 0
    while left:
        folder = tmp_path / f"killed {number}"
        number += 1
        ended, killed = -signal.SIGKILL, 0
        while ended != 0:
            ended = client.build(folder, rng.uniform(0, 0.8 * length) if left else None, n=n)
            assert ended in (0, -signal.SIGKILL)
            killed += ended != 0
            left -= ended != 0
        assert content(folder) == content(whole)
        assert made_again(folder / "parts.jsonl") == []
        assert made_again(folder / "asked.jsonl") == []
        asked = Counter(tuple(line) for line in rows_in(folder / "asked.jsonl") if isinstance(line, list))
        # Asked in vain was at most the one question in flight at each kill.
        assert sum(asked.values()) - len(asked) <= killed
        keys = [row["key"] for row in valid_lines(folder / "build/verdicts.jsonl")]
        assert len(keys) == len(set(keys)) == len(asked)
        records = rows_in(folder / "build/candidates.jsonl")[1:]
        assert len({(row["prompt"], row["contestant"]) for row in records}) == len(records) == PROMPTS * n


def valid_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a journal, without those that a kill cut."""
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
