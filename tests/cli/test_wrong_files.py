"""What stands where a file is expected and is none: every command says so in lines and exits with 2."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_folders import make_adapter, recipe_text, write_pairs, write_rows

from localdpo.cli.main import run
from localdpo.core.atomic import write_manifest
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow

JUDGE = ["--judge", "openai:http://127.0.0.1:9/v1#m", "--dry-run"]
BUILD = ["prefs", "build", "PROMPTS", "--out", "OUT", "--model", "MODEL", *JUDGE]
# What each option of each command reads; WRONG is where the wrong file goes.
PLACES: dict[str, list[str]] = {
    "data": ["train", "RECIPE", "data.train=WRONG", "--dry-run"],
    "held-out data": ["train", "RECIPE", "data.valid=WRONG", "--dry-run"],
    "recipe": ["train", "WRONG", "--dry-run"],
    "start adapter": ["train", "RECIPE", "adapter=WRONG", "--dry-run"],
    "model": ["train", "RECIPE", "model=WRONG", "--dry-run"],
    "prompts of eval": ["eval", "tiny", "--prompts", "WRONG", "--dry-run"],
    "prompts of compare": ["compare", "tiny", "--prompts", "WRONG", "--plain"],
    "checks": ["eval", "tiny", "--checks", "WRONG", "--dry-run"],
    "constitution": ["eval", "tiny", "--constitution", "WRONG", *JUDGE],
    "rubric": ["eval", "tiny", "--rubric", "WRONG", *JUDGE],
    "prices": ["eval", "tiny", "--prices", "WRONG", *JUDGE],
    "what to import": ["import", "WRONG", "OUT"],
    "pairs to check": ["prefs", "check", "WRONG"],
    "tokenizer to check with": ["prefs", "check", "PAIRS", "--model", "WRONG"],
    "rows to keep out": ["prefs", "check", "PAIRS", "--against", "WRONG"],
    "pairs to clean": ["prefs", "clean", "WRONG", "OUT"],
    "pairs to convert": ["prefs", "convert", "WRONG", "OUT", "--to", "openai"],
    "pairs to label": ["prefs", "label", "WRONG", "--plain"],
    "prompts to build from": [word if word != "PROMPTS" else "WRONG" for word in BUILD],
    "model to build with": [word if word != "MODEL" else "WRONG" for word in BUILD],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    pairs = write_pairs(folder / "pairs.jsonl", 8)
    write_rows(folder / "prompts.jsonl", [{"prompt": f"What is question number {n}?"} for n in range(2)])
    text = recipe_text(tiny_model, pairs, pairs)
    (folder / "recipe.yaml").write_text(text)
    tiny = RunDir.create(folder / "runs", "tiny", text)
    make_adapter(tiny.checkpoint_path(3), tiny_model)
    write_manifest(tiny.checkpoint_path(3))
    (folder / "empty").write_bytes(b"")
    (folder / "blank").write_bytes(b"\n \n")
    (folder / "folder").mkdir()
    (folder / "loop").symlink_to("loop")
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "no-text").write_bytes(b"\xff\xfe\x00")
    return folder


@pytest.fixture
def said(folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], tuple]:
    """Runs the program with these arguments; its exit code and what it said on stderr."""
    monkeypatch.chdir(folder)
    files = {"RECIPE": "recipe.yaml", "PAIRS": "pairs.jsonl", "PROMPTS": "prompts.jsonl", "OUT": "out.jsonl"}
    files["MODEL"] = str(tiny_model)

    def say(words: list[str]) -> tuple[object, str]:
        errors = io.StringIO()
        monkeypatch.setattr(sys, "argv", ["localdpo", *(files.get(word, word) for word in words)])
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        monkeypatch.setattr(sys, "stderr", errors)
        with pytest.raises(SystemExit) as end:
            run()
        return end.value.code, errors.getvalue()

    return say


WRONGS = [
    ("missing", "empty", "folder", "binary"),
    pytest.param(("blank", "loop", "no-text", "pairs.jsonl/below"), marks=pytest.mark.long),
]


@pytest.mark.parametrize("wrongs", WRONGS, ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_a_wrong_file_is_an_error_in_lines(
    place: str, wrongs: tuple[str, ...], said: Callable[[list[str]], tuple], folder: Path
) -> None:
    before = sorted(folder.rglob("*"))
    for wrong in wrongs:
        code, errors = said([word.replace("WRONG", wrong) for word in PLACES[place]])
        assert code == 2, (wrong, errors)
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert lines, (wrong, errors)
        assert Path(wrong).name in errors, (wrong, errors)
        assert "Traceback" not in errors
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    "command", [["compare", "tiny"], ["eval", "tiny"], ["report", "tiny"], ["prefs", "check", "PAIRS"]]
)
def test_a_page_replaces_no_file_that_is_none(
    command: list[str], folder: Path, said: Callable[[list[str]], tuple[object, str]]
) -> None:
    before = (folder / "pairs.jsonl").read_bytes()
    for place, problem in {
        "pairs.jsonl": "give a file name that ends in .html",
        ".": "give a file name that ends in .html",
        "no-folder/page.html": "the folder no-folder does not exist",
    }.items():
        code, errors = said([*command, "--html", place])
        assert (code, errors.count("\n")) == (2, 1), errors
        assert errors.startswith(f"error: --html {place}: "), errors
        assert problem in errors
    (folder / "thesis.html").write_text("<!doctype html>mine")
    code, errors = said([*command, "--html", "thesis.html"])
    assert (code, "exists already and is no page of localdpo" in errors) == (2, True), errors
    (folder / "thesis.html").unlink()
    assert (folder / "pairs.jsonl").read_bytes() == before
