"""`localdpo prefs`: exit codes, the report in three forms, and mistakes in one line."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from localdpo.cli.main import app
from localdpo.core.errors import LocalDPOError

pytestmark = pytest.mark.slow

runner = CliRunner()


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    """Ten rows without a defect."""
    rng = random.Random(0)

    def text() -> str:
        return " ".join("".join(rng.choices("abcdefghij", k=6)) for _ in range(12))

    return write(
        tmp_path / "pairs.jsonl",
        [{"prompt": text(), "chosen": text(), "rejected": text()} for _ in range(10)],
    )


def test_clean_data_exits_with_0(pairs: str) -> None:
    result = runner.invoke(app, ["prefs", "check", pairs])
    assert result.exit_code == 0
    assert f"{pairs}: 10 rows, 10 pairs, 10 prompts; format preference" in result.output
    assert "0 errors, 0 warnings, 0 info" in result.output


def test_an_error_exits_with_1_and_names_its_row(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "a"}])
    result = runner.invoke(app, ["prefs", "check", path])
    assert result.exit_code == 1
    assert "error: identical-answers (1 of 1)" in result.output
    assert f"{path}:1" in result.output


def test_the_report_as_json_and_as_a_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    path = write(tmp_path / "bad.jsonl", [{"prompt": evil, "chosen": evil, "rejected": ""}])
    page = tmp_path / "report.html"
    result = runner.invoke(
        app,
        ["prefs", "check", path, "--json", "--html", str(page), "--model", "demo:model", "--against", path],
    )
    assert result.exit_code == 1
    record = json.loads(result.stdout)
    assert [finding["name"] for finding in record["findings"]] == ["empty-answers", "overlap-exact"]
    assert record["facts"]["tokens"]["prompt"]["max"] > 0
    html = page.read_text()
    assert "overlap-exact" in html
    assert "&lt;script&gt;" in html
    assert "<script" not in html
    assert "http" not in html.replace("http-equiv", "")


def test_a_recipe_names_data_limits_and_what_to_compare_with() -> None:
    result = runner.invoke(app, ["prefs", "check", "--recipe", "recipes/dpo.yaml"])
    assert result.exit_code == 0, result.output
    assert "demo:preferences/train: 400 rows" in result.output
    assert "at max_length 512: 0 pairs cut" in result.output
    assert "compared with 428 evaluation prompts" in result.output


def test_clean_and_convert_say_what_they_did(pairs: str, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(pairs).read_text().splitlines()]
    rows[3]["rejected"] = ""
    dirty = write(tmp_path / "dirty.jsonl", [{**row, "note": "x"} for row in rows])
    result = runner.invoke(app, ["prefs", "clean", dirty, str(tmp_path / "clean.jsonl")])
    assert result.exit_code == 0, result.output
    assert "9 of 10 rows; 1 dropped" in result.output
    assert "empty-answers: 1 row" in result.output
    out = tmp_path / "openai.jsonl"
    result = runner.invoke(
        app, ["prefs", "convert", str(tmp_path / "clean.jsonl"), str(out), "--to", "openai"]
    )
    assert result.exit_code == 0, result.output
    assert "9 pairs from preference to openai, 9 rows" in result.output
    assert "lost: note: 9 pairs" in result.output
    assert json.loads(out.read_text().splitlines()[0])["input"]["messages"][0]["role"] == "user"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no data: name a file or data set of pairs, or give --recipe"),
        (["none.jsonl"], "none.jsonl: no such file"),
        (["DATA", "--max-length", "5"], "--max-length counts tokens: give --model too"),
        (["DATA", "--model", "demo:model", "--max-length", "1"], "--max-length: expected 2 or more, got 1"),
        (["DATA", "--model", "nowhere"], "model nowhere: no such folder"),
        (["DATA", "--reference", "5"], "--reference scores with a recipe's model and adapter"),
        (["--recipe", "recipes/dpo.yaml", "--model", "demo:model"], "remove --model and --max-length"),
        (["DATA", "--format", "hhh"], "--format: no format 'hhh' of preference pairs; did you mean hh"),
        (["DATA", "--against", "none.jsonl"], "none.jsonl: no such file"),
        (["demo:demonstrations/train"], "holds demonstrations"),
    ],
)
def test_mistakes_are_said_in_one_line(arguments: list[str], message: str, pairs: str) -> None:
    given = [pairs if argument == "DATA" else argument for argument in arguments]
    result = runner.invoke(app, ["prefs", "check", *given])
    assert isinstance(result.exception, LocalDPOError)
    (line,) = result.exception.lines
    assert message in line


@pytest.mark.long
def test_the_reference_is_scored_with_the_recipes_model() -> None:
    program = "from localdpo.cli.main import run; run()"
    command = [sys.executable, "-c", program, "prefs", "check", "--recipe", "recipes/dpo.yaml", "--json"]
    done = subprocess.run([*command, "--reference", "8"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    reference = json.loads(done.stdout)["facts"]["reference"]
    assert reference["scored"] == 8
    assert 0 <= reference["accuracy_per_token"] <= 1
