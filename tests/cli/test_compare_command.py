from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from localdpo.cli.compare import answers_of, choose_prompts, default_source, render, show, trained_name
from localdpo.core.errors import UserError, UserErrors
from localdpo.core.rundir import RunDir
from localdpo.data.prompts import read_prompts


@dataclass(frozen=True)
class Answers:
    """What localdpo.evals.compare gives for one prompt."""

    prompt: str
    base: str
    sft: str | None
    dpo: str


THREE = Answers("What is [bold]up[/bold]?", "sky", "the sky\nis up", "the sky \x1b[31mtoday")


def run_of(tmp_path: Path, recipe: str) -> RunDir:
    return RunDir.create(tmp_path / "runs", "dpo", recipe)


def printed(answers: Answers, width: int) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    console.print(render(answers, "1/1", console.width, "DPO"))
    return out.getvalue()


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
    text = printed(THREE, width)
    assert "[bold]up[/bold]" in text
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [80, 120])
def test_a_run_without_sft_shows_two(width: int):
    text = printed(Answers("p", "a", None, "b"), width)
    assert "SFT" not in text
    assert "DPO" in text


def test_the_trained_adapter_has_the_name_of_its_loss(tmp_path: Path):
    recipe = "model: demo:model\ndata: {train: t.jsonl}\nloss: "
    for loss, name in (("sigmoid", "DPO"), ("sft", "SFT"), ("ipo", "IPO")):
        assert trained_name(run_of(tmp_path / loss, recipe + loss)) == name
    assert [name for name, _ in answers_of(THREE, "SFT")] == ["base", "start", "SFT"]


def test_all_comparisons_are_shown_in_order():
    out = io.StringIO()
    show(Console(file=out, width=80, color_system=None), [THREE, Answers("second", "a", "b", "c")], "DPO")
    assert out.getvalue().index("prompt 1/2") < out.getvalue().index("prompt 2/2")


def test_given_prompts_come_first_then_those_of_the_file(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "two"}]
    rows = [{"prompt": "one", "chosen": "x"}, {"prompt": messages}, {"prompt": "three"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = RunDir(tmp_path)
    assert choose_prompts(run, str(file), ["mine"], 2) == ["mine", "one", messages]
    assert choose_prompts(run, None, ["mine"], 2) == ["mine"]


def test_held_out_prompts_are_found_from_the_recipe(tmp_path: Path):
    demo = "model: demo:model\ndata: {train: 'demo:preferences/train'}\n"
    assert default_source(run_of(tmp_path / "a", demo)) == "demo:prompts/heldout"
    assert default_source(run_of(tmp_path / "b", demo + "eval: {prompts: my.jsonl}\n")) == "my.jsonl"
    own = "model: m\ndata: {train: t.jsonl, valid: v.jsonl}\n"
    assert default_source(run_of(tmp_path / "c", own)) == "v.jsonl"
    with pytest.raises(UserError, match="give --prompts FILE or --prompt TEXT"):
        default_source(run_of(tmp_path / "d", "model: m\ndata: {train: t.jsonl}\n"))


def test_rows_without_a_prompt_are_named(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a"}\n{"text": "b"}\n{"prompt": 3}\n{broken\n')
    with pytest.raises(UserErrors) as caught:
        read_prompts(str(file), 10)
    assert [line.split()[0] for line in caught.value.lines] == [f"{file}:{row}" for row in (2, 3, 4)]
    assert read_prompts(str(file), 1) == ["a"]


def test_a_file_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        read_prompts(str(tmp_path / "nothing.jsonl"), 3)
