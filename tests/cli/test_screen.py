"""Where a program of the whole screen opens: one rule for every command that has one."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from localdpo.out import has_screen

CLI = Path(__file__).parents[2] / "localdpo" / "cli"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stdin", "stdout", "term", "expected"),
    [
        (Terminal(), Terminal(), "xterm-256color", True),
        (Terminal(), Terminal(), "dumb", False),
        (io.StringIO(), Terminal(), "xterm-256color", False),
        (Terminal(), io.StringIO(), "xterm-256color", False),
    ],
)
def test_it_needs_keys_and_a_terminal_that_can_be_drawn_on(
    stdin: io.StringIO, stdout: io.StringIO, term: str, expected: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.setattr("sys.stdout", stdout)
    monkeypatch.setenv("TERM", term)
    assert has_screen() is expected


def test_every_command_that_opens_one_asks_for_it():
    texts = {path.stem: path.read_text() for path in CLI.glob("*.py")}
    openers = {name for name, text in texts.items() if re.search(r"\b(run_app|train_in_dashboard)\(", text)}
    assert openers >= {"chat", "compare", "prefs", "train", "watch"}
    assert {name for name in openers if "has_screen()" not in texts[name]} == set()
