"""Notifications of the desktop: their codes, when they come, and that no text steers the terminal."""

from __future__ import annotations

import io

import pytest
from logged import EVAL, NOTICE, STARTED, event
from rich.console import Console

from localdpo.cli.plain import ProgressView
from localdpo.out import _Guarded, notification, notify
from localdpo.records.progress import Progress
from localdpo.records.wording import alert_text


@pytest.mark.parametrize(
    ("environment", "codes"),
    [
        ({"TERM": "xterm-256color"}, "\x1b]9;localdpo: a b\x07\x07"),
        ({"TERM": "dumb"}, "\x07"),
        ({"TERM": "foot"}, "\x1b]777;notify;localdpo;a b\x07\x07"),
        ({"TERM": "xterm", "VTE_VERSION": "7600"}, "\x1b]777;notify;localdpo;a b\x07\x07"),
        (
            {"TERM": "tmux-256color", "TMUX": "/tmp/tmux-0/default,1,0"},
            "\x1bPtmux;\x1b\x1b]9;localdpo: a b\x07\x1b\\\x07",
        ),
    ],
)
def test_each_terminal_gets_the_codes_that_it_knows(environment: dict[str, str], codes: str):
    assert notification("a\nb", environment) == codes


def test_text_cannot_end_the_code_or_begin_another():
    codes = notification("x\x07\x1b]0;title\x1b\\\x9c" + "y" * 1000, {})
    inner = codes.removeprefix("\x1b]9;").removesuffix("\x07\x07")
    assert inner.isprintable()
    assert len(codes) < 250


def test_warnings_and_ends_are_worth_a_notification():
    assert alert_text("dpo", NOTICE) == "dpo: warning: both\nfall"
    assert alert_text("dpo", event("notice", 1, level="info", message="m")) is None
    assert alert_text("dpo", EVAL) is None
    ends = [event(f"run.{end}", 60) for end in ("finished", "stopped", "failed", "crashed")]
    assert [alert_text("dpo", end) for end in ends] == [
        f"dpo {end} at step 60" for end in ("finished", "stopped", "failed", "crashed")
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("has_bar", [False, True])
def test_lines_and_bars_notify_only_when_asked(has_bar: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("TMUX", raising=False)
    monkeypatch.delenv("VTE_VERSION", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, expected in ((None, 0), ("dpo", 2)):
        terminal = Terminal()
        monkeypatch.setattr("sys.stdout", _Guarded(terminal))
        console = Console(file=io.StringIO(), force_terminal=has_bar)
        with ProgressView(console, Progress(), name) as view:
            for one in (STARTED, NOTICE, event("run.finished", 60)):
                view.show(one)
        assert terminal.getvalue().count("\x1b]9;localdpo: dpo") == expected


def test_a_pipe_gets_no_codes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    notify("text")
    assert capsys.readouterr() == ("", "")
