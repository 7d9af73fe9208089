"""`localdpo eval` and `localdpo report` from the outside."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from tiny_folders import make_adapter, recipe_text, write_pairs, write_rows
from typer.testing import CliRunner

from localdpo.cli import judging
from localdpo.cli.main import app
from localdpo.core.atomic import write_manifest
from localdpo.core.errors import UserError
from localdpo.evals.table import read_record
from localdpo.judging.cost import Budget
from localdpo.records.checkpoints import set_latest
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow

Ask = Callable[..., str]


@pytest.fixture
def ask(tmp_path: Path, tiny_model: Path) -> Ask:
    """Runs the command on a tiny run without a start adapter; gives what it printed on stdout."""
    pairs = write_pairs(tmp_path / "pairs.jsonl", 2)
    rows = [{"prompt": f"What is question number {n}?"} for n in range(4)]
    prompts = write_rows(tmp_path / "prompts.jsonl", rows)
    run = RunDir(tmp_path / "runs" / "tiny")
    run.path.mkdir(parents=True)
    run.recipe.write_text(recipe_text(tiny_model, pairs, eval={"prompts": str(prompts)}))
    make_adapter(run.checkpoint_path(3), tiny_model, seed=77)
    write_manifest(run.checkpoint_path(3))
    set_latest(run.checkpoint_path(3))

    def asked(*words: str) -> str:
        result = CliRunner().invoke(app, [*words, "--runs-dir", str(run.path.parent)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.stdout

    return asked


def test_eval_prints_the_table_and_writes_the_files(ask: Ask, tmp_path: Path) -> None:
    shown = ask("eval", "--max-tokens", "6", "--html", str(tmp_path / "page.html"))
    assert "metric" in shown
    assert "DPO - base" in shown
    folder = tmp_path / "runs" / "tiny" / "eval"
    assert f"written: {folder}/heuristics.json, .md and .html" in shown
    assert (tmp_path / "page.html").read_text() == (folder / "heuristics.html").read_text()


def test_json_is_the_file(ask: Ask, tmp_path: Path) -> None:
    shown = ask("eval", "tiny", "--max-tokens", "6", "--name", "mine", "--limit", "2", "--json")
    assert json.loads(shown) == read_record(tmp_path / "runs" / "tiny" / "eval" / "mine.json")
    assert json.loads(shown)["prompts"] == 2


def test_a_dry_run_leaves_nothing(ask: Ask, tmp_path: Path) -> None:
    shown = ask("eval", "--dry-run", "--temperature", "0")
    assert "answers: 8 of at most 256 tokens, 8 to generate" in shown
    assert not (tmp_path / "runs" / "tiny" / "eval").exists()
    assert not (tmp_path / "runs" / "tiny" / "answers").exists()


def test_mistakes_are_user_errors(ask: Ask) -> None:
    with pytest.raises(UserError, match="no run named 'other'"):
        ask("eval", "other")
    with pytest.raises(UserError, match="no such judge"):
        ask("eval", "--judge", "nobody")
    with pytest.raises(UserError, match="does not exist"):
        ask("report", "--html", "/no/such/folder/page.html")


def test_report_is_written_into_the_run_or_where_one_says(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "runs" / "tiny" / "report.html"
    assert ask("report") == f"written: {path}\n"
    assert ask("report", "tiny", "--html", str(tmp_path / "r.html")) == f"written: {tmp_path / 'r.html'}\n"
    assert path.read_text() == (tmp_path / "r.html").read_text()


def test_without_a_terminal_progress_is_printed_in_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(judging, "time", SimpleNamespace(monotonic=lambda: clock.now))
    console = Console(file=io.StringIO(), width=80)
    display = judging.ProgressDisplay(console, {"answers": 1020, "verdicts": 0}, Budget())
    display.hooks().on_questions(2)
    for _ in range(1020):
        clock.now += 0.0078125
        display.advance("answers")
    display.advance("verdicts")
    display.advance("verdicts")
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "answers 640 of 1,020",
        "answers 1,020 of 1,020",
        "verdicts 2 of 2",
    ]


def test_threads_that_wait_for_the_same_reason_say_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(judging, "time", SimpleNamespace(monotonic=lambda: clock.now))
    console = Console(file=io.StringIO(), width=80)
    wait = judging.ProgressDisplay(console, {"answers": 1, "verdicts": 0}, Budget()).wait
    for seconds in (4.0, 3.0, 5.0):
        wait(seconds, "HTTP 429")
    wait(2.0, "HTTP 529")
    clock.now = 4.5
    wait(8.0, "HTTP 429")
    assert console.file.getvalue().splitlines() == [  # type: ignore[attr-defined]
        "waiting 4s: HTTP 429",
        "waiting 2s: HTTP 529",
        "waiting 8s: HTTP 429",
    ]


def test_progress_goes_to_stderr(ask: Ask, tmp_path: Path) -> None:
    words = ["eval", "--max-tokens", "4", "--limit", "2", "--runs-dir", str(tmp_path / "runs")]
    result = CliRunner().invoke(app, words)
    assert "answers 4 of 4" in result.stderr.splitlines()
    assert "of 4" not in result.stdout
