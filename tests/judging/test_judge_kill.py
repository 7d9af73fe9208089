"""SIGKILL at every verdict, then resume: the same table, and nothing that was answered is asked again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Fault

from localdpo.judging.base import Question
from localdpo.judging.prompts import message

pytestmark = pytest.mark.slow

CLIENT = Path(__file__).with_name("killed_client.py")
QUESTIONS = 8


class Client:
    """The client process; see killed_client.py."""

    def __init__(self, url: str) -> None:
        environment = os.environ | {
            "ANTHROPIC_BASE_URL": url,
            "ANTHROPIC_API_KEY": "sk-test-key-of-the-tests",
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": os.pathsep.join(
                filter(None, (os.environ.get("PYTHONPATH"), str(CLIENT.parents[1])))
            ),
        }
        self.process = subprocess.Popen(
            [sys.executable, str(CLIENT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def run(self, folder: Path, die_after: int | None, concurrency: int = 1, batch: bool = False) -> int:
        """The exit status of one run, -9 when it was killed."""
        job = {"folder": str(folder), "die_after": die_after, "concurrency": concurrency, "batch": batch}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def server() -> Iterator[FakeServer]:
    with FakeServer() as fake:
        yield fake


@pytest.fixture(scope="module")
def client(server: FakeServer) -> Iterator[Client]:
    one = Client(server.url)
    with one.process:
        yield one
        assert one.process.stdin is not None
        one.process.stdin.close()


@pytest.fixture(scope="module")
def table(client: Client, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of a run that nobody killed."""
    folder = tmp_path_factory.mktemp("whole")
    assert client.run(folder, None) == 0
    return (folder / "table.txt").read_bytes()


def test_killed_after_each_verdict_in_turn(server: FakeServer, client: Client, table: bytes, tmp_path: Path):
    server.asked.clear()
    for _ in range(QUESTIONS):
        assert client.run(tmp_path, 1) == -signal.SIGKILL
    assert client.run(tmp_path, None) == 0
    assert (tmp_path / "table.txt").read_bytes() == table
    assert len(server.asked) == QUESTIONS
    assert set(server.asked.values()) == {1}


@pytest.mark.every(3)
@pytest.mark.parametrize("die_after", [4, 1, 7])
def test_killed_with_several_in_flight(
    server: FakeServer, client: Client, table: bytes, tmp_path: Path, die_after: int
):
    server.asked.clear()
    assert client.run(tmp_path, die_after, concurrency=6) == -signal.SIGKILL
    lines = (tmp_path / "verdicts.jsonl").read_text().splitlines()
    kept = [json.loads(line)["question"] for line in lines]
    assert len(kept) >= die_after
    assert client.run(tmp_path, None, concurrency=6) == 0
    assert (tmp_path / "table.txt").read_bytes() == table
    # What was in flight may have been asked in vain; what was kept was not asked again.
    for one in kept:
        assert server.asked[message(Question(one["id"], one["prompt"], tuple(one["answers"])))] == 1


def test_killed_while_verdicts_of_a_batch_come_in(
    server: FakeServer, client: Client, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    whole = tmp_path_factory.mktemp("batch")
    assert client.run(whole, None, batch=True) == 0
    sent = len(server.batches)
    for _ in range(QUESTIONS):
        assert client.run(tmp_path, 1, batch=True) == -signal.SIGKILL
    assert client.run(tmp_path, None, batch=True) == 0
    assert (tmp_path / "table.txt").read_bytes() == (whole / "table.txt").read_bytes()
    # One batch more, in nine runs.
    assert len(server.batches) == sent + 1
    # Nothing is left to fetch.
    assert json.loads((whole / "batches.json").read_text())["batches"] == []


@pytest.mark.parametrize("how", ["killed", "dropped"])
def test_a_batch_whose_id_never_came_is_found_again(
    server: FakeServer, client: Client, table: bytes, tmp_path: Path, how: str
):
    sent = len(server.batches)
    created: list[str] = []

    def lose_the_id(number: int, body: dict[str, Any]) -> Fault | None:
        if "requests" not in body or created:
            return None
        created.append(server.make_batch(body))
        if how == "killed":
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        return Fault("drop")

    server.fault = lose_the_id
    assert client.run(tmp_path, None, batch=True) == (-signal.SIGKILL if how == "killed" else 0)
    assert client.run(tmp_path, None, batch=True) == 0
    server.fault = lambda number, body: None
    assert len(server.batches) == sent + 1
    ours, theirs = ((tmp_path / "table.txt").read_text().splitlines(), table.decode().splitlines())
    # But for the price, which is half.
    assert [line.split()[:3] for line in ours] == [line.split()[:3] for line in theirs]


@pytest.mark.long
def test_killed_while_a_question_is_in_flight(
    server: FakeServer, client: Client, table: bytes, tmp_path: Path
):
    server.asked.clear()
    killed: list[int] = []

    def kill_at_the_sixth(number: int, body: dict[str, Any]) -> Fault | None:
        if len(server.asked) < 5 or killed:
            return None
        killed.append(number)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
        return Fault("drop")

    server.fault = kill_at_the_sixth
    assert client.run(tmp_path, None) == -signal.SIGKILL
    server.fault = lambda number, body: None
    assert client.run(tmp_path, None) == 0
    assert (tmp_path / "table.txt").read_bytes() == table
    assert sum(server.asked.values()) == len(server.asked) == QUESTIONS
