"""`localdpo prefs build` on the demo's model: preview, report, going on, and mistakes in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from localdpo.cli.main import app
from localdpo.core.errors import LocalDPOError, UserError

pytestmark = pytest.mark.slow

runner = CliRunner()
DEMO = ["--model", "demo:model", "--adapter", "demo:sft", "--limit", "12", "--max-tokens", "60"]


def build(out: Path, *more: str) -> list[str]:
    return ["prefs", "build", "demo:prompts/heldout", "--out", str(out), *DEMO, *more]


def test_previewed_built_and_gone_on_with(tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    preview = runner.invoke(app, build(out, "--dry-run"))
    assert preview.exit_code == 0
    assert "candidates: 24 of at most 60 tokens at temperature 1; 24 to generate" in preview.output
    assert "cost: at most $0.00" in preview.output
    assert not out.exists()

    made = runner.invoke(app, build(out, "--valid-count", "1"))
    assert made.exit_code == 0, made.output
    assert "prompts: 12 of demo:prompts/heldout" in made.output
    assert f"written: {out}/train.jsonl, {out}/valid.jsonl, {out}/report.json" in made.output
    assert len((out / "valid.jsonl").read_text().splitlines()) == 1

    again = runner.invoke(app, build(out, "--valid-count", "1", "--json"))
    assert json.loads(again.stdout) == json.loads((out / "report.json").read_text())
    assert json.loads(again.stdout)["judge"]["name"] == "rules"

    checked = runner.invoke(app, ["prefs", "check", str(out / "train.jsonl"), "--model", "demo:model"])
    assert f"{out / 'train.jsonl'}: " in checked.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--temperatures", "hot"], "--temperatures hot: expected numbers with commas"),
        (["--missing-eos-penalty", "-1"], "--missing-eos-penalty -1: expected a number above 0"),
        (["--valid-count", "1", "--valid-fraction", "0.1"], "give one of the two"),
        (["--recipe", "recipe.yaml"], "--recipe names the model: leave out"),
        (["--judge", "nobody"], "nobody: no such judge"),
        (["--adapter", "nowhere"], "adapter nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    result = runner.invoke(app, build(tmp_path / "out", *arguments))
    assert isinstance(result.exception, LocalDPOError)
    assert any(message in line for line in result.exception.lines)
    assert not (tmp_path / "out").exists()


def test_a_model_has_to_be_named(tmp_path: Path) -> None:
    result = runner.invoke(app, ["prefs", "build", "demo:prompts/heldout", "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, UserError)
    assert "no model: give --recipe, or --model and --adapter" in str(result.exception)
