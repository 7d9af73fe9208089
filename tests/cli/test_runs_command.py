from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from localdpo.cli.options import run_names
from localdpo.cli.plain import print_table
from localdpo.cli.runs import HEADINGS, list_all
from localdpo.core.text import age
from localdpo.out.console import Console
from localdpo.records.events import Event, EventWriter
from localdpo.records.rundir import RunDir
from localdpo.records.runs import RUN_COLUMNS, summarise


@pytest.fixture
def two_runs(tmp_path: Path) -> Path:
    first = RunDir.create(tmp_path, "sft", "m\n")
    os.utime(first.recipe, (1, 1))
    second = RunDir.create(tmp_path, "dpo", "m\n")
    with EventWriter(second.events) as writer:
        writer.write(
            "run.started", total_steps=60, model="demo:model", loss="sigmoid", recipe={"loss": {"beta": 0.1}}
        )
        writer.write("eval", 20, metrics={"rewards/accuracies": 0.8125, "rewards/margins": 1.5, "kl": 0.25})
        writer.write("run.finished", 60)
    return tmp_path


def test_the_table_without_a_terminal(two_runs: Path, capsys: pytest.CaptureFixture[str]):
    list_all(two_runs, as_json=False)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == list(HEADINGS)
    assert lines[1][:9] == [
        "dpo",
        "finished",
        "sigmoid",
        "0.1",
        "demo:model",
        "60/60",
        "0.812",
        "1.500",
        "0.250",
    ]
    assert lines[2] == ["sft", "new", "-", "-", "-", "0", "-", "-", "-", "-"]


def test_a_shell_completes_the_runs_of_series(two_runs: Path) -> None:
    RunDir.create(two_runs / "series", "round-1", "m\n")
    context: Any = SimpleNamespace(params={"runs_dir": two_runs})
    assert run_names(context, "s") == ["series/round-1", "sft"]


def test_damaged_lines_of_a_log_are_told_once_beside_the_table(
    two_runs: Path, capsys: pytest.CaptureFixture[str]
):
    log = two_runs / "dpo" / "events.jsonl"
    log.write_bytes(log.read_bytes().replace(b"0.8125", b"0.9125"))
    for as_json in (False, True):
        list_all(two_runs, as_json=as_json)
        shown = capsys.readouterr()
        assert shown.err == f"{log}: 1 damaged line is skipped (line 2)\n"
        assert "0.91" not in shown.out


def test_the_same_as_json(two_runs: Path, capsys: pytest.CaptureFixture[str]):
    list_all(two_runs, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert [run["name"] for run in found] == ["dpo", "sft"]
    assert found[0]["accuracy"] == 0.8125
    assert found[0]["updated"] == pytest.approx(time.time(), abs=60)
    assert found[1]["state"] == "new"


def test_no_runs_are_an_empty_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    list_all(tmp_path / "none", as_json=True)
    assert json.loads(capsys.readouterr().out) == []
    list_all(tmp_path / "none", as_json=False)
    assert capsys.readouterr().out.split() == list(HEADINGS)


def test_why_a_run_failed_stands_beside_the_table(two_runs: Path, capsys: pytest.CaptureFixture[str]):
    with EventWriter(two_runs / "dpo" / "events.jsonl") as writer:
        writer.write("run.resumed", 60)
        writer.write("run.failed", error="RuntimeError: [metal::malloc] Unable to allocate\n\x1b[2J")
    list_all(two_runs, as_json=False)
    shown = capsys.readouterr()
    assert shown.err.startswith(
        "dpo: RuntimeError: [metal::malloc] Unable to allocate \\x1b[2J; hint: the GPU ran"
    )
    assert shown.err.count("\n") == 1
    list_all(two_runs, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert "hint: the GPU ran out of memory" in found[0]["why"]
    assert found[1]["why"] is None


def test_a_row_shows_when():
    summary = summarise(RunDir("a"), [Event(1, 100.0, "run.resumed", 3)], running=True)
    cells = [RUN_COLUMNS[heading].text(summary, 160.0) for heading in HEADINGS]
    assert cells == ["a", "running", "", "", "", "3", "", "", "", "1m ago"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s ago"), (59, "59s ago"), (60, "1m ago"), (7300, "2h ago"), (200_000, "2d ago")],
)
def test_ages(seconds: float, text: str):
    assert age(seconds) == text


def test_columns_are_aligned():
    out = io.StringIO()
    print_table(Console(file=out), ("a", "bb"), [("ccc", "d")], right=("bb",))
    assert out.getvalue() == "a    bb\nccc  d\n"
