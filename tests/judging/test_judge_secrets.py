"""No byte of a key in a file, on the screen, in a log or a traceback, even if the server sends it back."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_server import FakeServer, Fault

from localdpo.judging.base import JudgeStopped
from localdpo.judging.remote import HIDDEN, key_from, server_text

pytestmark = pytest.mark.slow

CANARY = "sk-canary-0123456789-abcdef"
CLIENT = Path(__file__).with_name("leaky_client.py")
ECHO = {"x-echo": f"Bearer {CANARY}", "content-type": "application/json"}
FAULTS = [
    Fault("status", 401, ECHO, f'{{"error": {{"message": "invalid key {CANARY}"}}}}'),
    Fault("status", 429, ECHO, f"slow down {CANARY}"),
    Fault("status", 500, ECHO, CANARY),
    Fault("status", 200, ECHO, f"<html>{CANARY}</html>"),
    Fault("status", 400, ECHO, f'{{"error": {{"message": "{CANARY}"}}}}'),
    Fault("status", 302, ECHO | {"location": f"http://127.0.0.1:9/{CANARY}"}, CANARY),
    Fault("drop"),
]


def fault_of(number: int, body: dict[str, Any]) -> Fault | None:
    if number % 3 == 2 and number < 60:
        return FAULTS[(number // 3) % len(FAULTS)]
    return None


def test_a_canary_is_nowhere(tmp_path: Path):
    with FakeServer() as plain, FakeServer() as batch:
        for server in (plain, batch):
            server.decide = lambda blocks: {"reason": f"I was sent {CANARY}", "choice": "tie"}
            server.fault = fault_of
        batch.results_url = f"http://127.0.0.1:9/{CANARY}"
        environment = os.environ | {
            "ANTHROPIC_API_KEY": CANARY,
            "LOCALDPO_JUDGE_KEY": CANARY,
            "ANTHROPIC_LOG": "debug",
            "NO_PROXY": "127.0.0.1",
            "PYTHONFAULTHANDLER": "1",
        }
        done = subprocess.run(
            [sys.executable, str(CLIENT), str(tmp_path), plain.url, batch.url],
            capture_output=True,
            env=environment,
            timeout=100,
            check=False,
        )
    shown = done.stdout + done.stderr
    leaks = [line for line in shown.splitlines() if CANARY.encode() in line]
    assert done.returncode == 0, shown.decode()
    # The servers did get it, and the logs were on.
    for server in (plain, batch):
        assert any(CANARY in headers.get("authorization", "") for headers in server.headers)
    assert b"HTTP Request" in shown
    assert HIDDEN.encode() in shown
    assert leaks == []
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in files} > {"all.log", "0.jsonl", "1.jsonl", "2.jsonl"}
    for path in files:
        assert CANARY.encode() not in path.read_bytes(), path


def test_a_key_is_not_in_a_repr_or_in_a_servers_words():
    found = key_from(("KEY",), {"KEY": CANARY})
    assert found is not None
    assert CANARY not in f"{found} {found[1]} {found[1]!r}"
    assert server_text(f"bad key\n\x1b[31m {CANARY}") == f"bad key \\x1b[31m {HIDDEN}"
    assert server_text("x" * 500).endswith("x...")


@pytest.mark.parametrize("value", ["two words", "new\nline", "caf\u00e9", "tab\there"])
def test_a_key_that_cannot_be_one_is_refused_without_showing_it(value: str):
    with pytest.raises(JudgeStopped, match="KEY: the key holds") as error:
        key_from(("KEY",), {"KEY": value})
    assert value not in str(error.value)


def test_keys_are_taken_in_order_and_without_white_space_around_them():
    assert key_from(("A", "B"), {}) is None
    found = key_from(("A", "B"), {"A": " ", "B": f" {CANARY}\n"})
    assert found is not None
    assert (found[0], found[1].get_secret_value()) == ("B", CANARY)


def test_log_records_of_others_are_left_alone(caplog: pytest.LogCaptureFixture):
    key_from(("KEY",), {"KEY": CANARY})
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("anthropic.deep.down").debug("sent %s", {"key": CANARY})
        logging.getLogger("mine").debug("sent %s", "this")
        try:
            raise ValueError(CANARY)
        except ValueError:
            logging.getLogger("httpx2").debug("failed", exc_info=True)
    assert CANARY not in caplog.text
    assert caplog.records[1].args == ("this",)
    assert "ValueError: [key]" in caplog.text
