from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from localdpo.cli import compare as command
from localdpo.cli.compare import render, show
from localdpo.cli.main import app
from localdpo.core.errors import UserError
from localdpo.dashboard.app import DashboardApp
from localdpo.records.answers import (
    AnswerRecord,
    AnswersRequest,
    AnswersTail,
    Header,
    Sampling,
    answers_object,
)
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow

THREE = [("base", "sky"), ("SFT", "the sky\nis up"), ("DPO", "the sky \x1b[31mtoday")]


def printed(answers: list[tuple[str, str]], width: int) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    console.print(render("What is [bold]up[/bold]?", answers, "1/1", console.width))
    return out.getvalue()


def answers() -> AnswersTail:
    tail = AnswersTail("none")
    tail.header = Header(
        key="k",
        run="dpo",
        sampling=Sampling(8, 0.5, 1),
        contestants=(
            {"name": "base", "label": "base", "role": "base"},
            {"name": "dpo", "label": "DPO", "role": "trained"},
        ),
        prompts=({"id": "a", "text": "One?"}, {"id": "b", "text": "Two?"}),
        source="demo:prompts/heldout",
    )
    for prompt in (0, 1):
        for name in ("base", "dpo"):
            tail.records[prompt, name] = AnswerRecord(
                prompt, name, f"{name} {prompt}", 2, True, {"base": -1.5}
            )
    return tail


def test_a_wide_screen_shows_three_columns():
    text = printed(THREE, 120)
    header = next(line for line in text.splitlines() if "base" in line)
    assert header.index("base") < header.index("SFT") < header.index("DPO")
    row = next(line for line in text.splitlines() if "the sky" in line)
    assert row.index("sky") < row.index("the sky")


def test_a_narrow_screen_shows_them_in_turn():
    lines = printed(THREE, 80).splitlines()
    assert lines.index("base:") < lines.index("SFT:") < lines.index("DPO:")
    assert lines[lines.index("SFT:") + 1 : lines.index("SFT:") + 3] == ["the sky", "is up"]


@pytest.mark.parametrize("width", [30, 80, 120])
def test_answers_are_text_and_nothing_else(width: int):
    text = printed([*THREE, ("[red]run[/red]", "x")], width)
    assert "[bold]up[/bold]" in text
    assert "[red]run[/red]" in text or width == 30
    assert "\x1b" not in text


def test_all_prompts_are_shown_in_order():
    out = io.StringIO()
    show(Console(file=out, width=80, color_system=None), answers())
    text = out.getvalue()
    assert text.index("prompt 1/2") < text.index("base 0") < text.index("dpo 0") < text.index("prompt 2/2")


def test_the_object_holds_every_answer_with_its_figures():
    found = json.loads(json.dumps(answers_object(answers())))
    assert found["sampling"] == {"max_tokens": 8, "temperature": 0.5, "seed": 1}
    assert [one["label"] for one in found["contestants"]] == ["base", "DPO"]
    second = found["prompts"][1]
    assert (second["id"], second["text"]) == ("b", "Two?")
    assert second["answers"]["dpo"] == {
        "text": "dpo 1",
        "tokens": 2,
        "finished": True,
        "logps": {"base": -1.5},
    }


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        RunDir.create(tmp_path / "runs", name, "model: demo:model\ndata: {train: t.jsonl}\n")
    return tmp_path / "runs"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[AnswersRequest]:
    """The requests that were answered, in place of a model."""
    found: list[AnswersRequest] = []

    def answer(request: AnswersRequest, note: object) -> AnswersTail:
        found.append(request)
        return answers()

    monkeypatch.setattr("localdpo.answering.generator.answered", answer)
    return found


def invoke(*words: str) -> Any:
    return CliRunner().invoke(app, ["compare", *words])


def test_options_become_a_request(runs: Path, asked: list[AnswersRequest]):
    words = [
        "a",
        "--runs-dir",
        str(runs),
        "--prompts",
        "p.jsonl",
        "--prompt",
        "Why?",
        "--with",
        "b",
        "--json",
    ]
    done = invoke(*words, "--max-tokens", "9", "--temperature", "0.7", "--seed", "3", "--limit", "5")
    assert done.exit_code == 0, done.output
    (request,) = asked
    assert request == AnswersRequest(
        run=runs / "a",
        prompts="p.jsonl",
        texts=("Why?",),
        limit=5,
        with_runs=(runs / "b",),
        sampling=Sampling(9, 0.7, 3),
    )
    assert json.loads(done.stdout)["run"] == "dpo"


def test_without_a_terminal_a_few_answers_are_printed(runs: Path, asked: list[AnswersRequest]):
    done = invoke("a", "--runs-dir", str(runs))
    assert "prompt 2/2" in done.output
    assert asked[0].limit == command.PRINTED_PROMPTS
    assert (asked[0].prompts, asked[0].texts) == (None, ())


def test_a_page_is_written(runs: Path, asked: list[AnswersRequest], tmp_path: Path):
    page = tmp_path / "page.html"
    done = invoke("a", "--runs-dir", str(runs), "--html", str(page))
    assert done.output == f"written: {page}\n"
    assert "<del>base</del><ins>dpo</ins> 1" in page.read_text()
    assert asked[0].limit == command.BROWSED_PROMPTS


def test_two_outputs_at_once_are_refused(runs: Path):
    done = invoke("a", "--runs-dir", str(runs), "--plain", "--json")
    assert isinstance(done.exception, UserError)
    assert "choose one" in str(done.exception)


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_prompt_is_refused(runs: Path, asked: list[AnswersRequest], text: str):
    done = invoke("a", "--runs-dir", str(runs), "--plain", "--prompt", "Hi", "--prompt", text)
    assert isinstance(done.exception, UserError)
    assert str(done.exception) == "--prompt: the text is empty; expected a prompt to answer"
    assert asked == []


def test_on_a_terminal_the_screen_opens(
    runs: Path, monkeypatch: pytest.MonkeyPatch, asked: list[AnswersRequest]
):
    opened: list[DashboardApp] = []
    monkeypatch.setattr("localdpo.dashboard.appbase.run_app", opened.append)
    monkeypatch.setattr(command, "has_screen", lambda: True)
    invoke("a", "--runs-dir", str(runs), "--seed", "4")
    (app,) = opened
    request = app.request
    assert app.feed is not None
    assert request is not None
    assert (app.runs_dir, app.feed.run.name, app._jump) == (runs, "a", "compare")
    assert (request.limit, request.sampling.seed) == (command.BROWSED_PROMPTS, 4)
    assert asked == []
    invoke("a", "--runs-dir", str(runs), "--plain")
    assert len(opened) == len(asked) == 1


def test_the_screen_needs_no_mlx() -> None:
    import subprocess

    code = (
        "import sys, localdpo.dashboard.app, localdpo.dashboard.screens.compare; "
        "print(*sorted({'mlx', 'mlx_lm', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
