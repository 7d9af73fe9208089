"""Every command that ends with a result has --json, and stdout is that result alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import localdpo
from tiny_folders import make_adapter, recipe_text, write_pairs
from typer.main import get_command

from localdpo.cli.main import app
from localdpo.core.atomic import write_manifest
from localdpo.prefs.label import open_labelling
from localdpo.recipe.load import dump_recipe, load_recipe
from localdpo.records.events import EventWriter
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow

# They show a screen, talk or serve until they are left; what schema prints is JSON.
WITHOUT_RESULT = {"watch", "chat", "serve", "mcp", "schema"}
# Commands that load a model, and what a key of their result is.
WITH_MODEL = {
    "train": (["dpo.yaml", "--run", "new", "train.max_steps=1"], "adapter"),
    "compare": (["r", "--prompt", "x", "--max-tokens", "2"], "prompts"),
    "eval": (["r", "--max-tokens", "2"], "metrics"),
    "generate": (["r", "--prompt", "x", "--max-tokens", "2"], "answers"),
    "export": (["r", "--to", "peft", "--out", "exported"], "check"),
    "import": (["exported", "imported", "--model", "MODEL"], "folder"),
    "inspect": (["r"], "pairs"),
}
OTHERS = {
    "init": (["demo", "--dir", "starters"], "written"),
    "train": (["dpo.yaml", "--run", "r"], "adapter"),
    "runs": ([], None),
    "report": (["r"], "html"),
    "doctor": ([], None),
    "eval": (["r", "--dry-run"], "preview"),
    "prefs check": (["pairs.jsonl"], "findings"),
    "prefs clean": (["pairs.jsonl", "clean.jsonl"], "kept"),
    "prefs convert": (["pairs.jsonl", "openai.jsonl", "--to", "openai"], "written"),
    "prefs split": (["pairs.jsonl", "t.jsonl", "v.jsonl"], "prompts"),
    "prefs label": (["pairs.jsonl", "--plain"], "choices"),
    "prefs build": (
        ["valid.jsonl", "--out", "b", "--model", "MODEL", "--judge", "mlx:MODEL", "--dry-run"],
        "preview",
    ),
}
CASES = [
    pytest.param(command, *case, id=command, marks=marks)
    for cases, marks in ((OTHERS, []), (WITH_MODEL, [pytest.mark.long]))
    for command, case in cases.items()
]


def documented_keys() -> dict[str, str]:
    """The main keys of the JSON of every command, as docs/commands.md has them."""
    page = Path(__file__).parents[2] / "docs" / "commands.md"
    table = page.read_text(encoding="utf-8").partition("| command | main keys |")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `([a-z ]+)` \| (.*) \|$", table, re.MULTILINE))


def leaves(command: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, below in getattr(command, "commands", {}).items():
        if hasattr(below, "commands"):
            yield from leaves(below, f"{path}{name} ")
        if not hasattr(below, "commands") or below.invoke_without_command:
            yield f"{path}{name}", below


def test_every_command_with_a_result_has_the_option() -> None:
    with_json = {
        name
        for name, command in leaves(get_command(app))
        if any("--json" in parameter.opts for parameter in command.params)
    }
    every = {name for name, _ in leaves(get_command(app))}
    assert with_json == every - WITHOUT_RESULT
    assert set(documented_keys()) == with_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Pairs, one label, a recipe, and a run of it that has finished."""
    folder = tmp_path_factory.mktemp("json")
    pairs = write_pairs(folder / "pairs.jsonl", 12)
    valid = write_pairs(folder / "valid.jsonl", 3, start=50)
    text = recipe_text(tiny_model, pairs, valid)
    (folder / "dpo.yaml").write_text(text)
    run = RunDir.create(folder / "runs", "r", dump_recipe(load_recipe(folder / "dpo.yaml")))
    with EventWriter(run.events) as log:
        log.write("run.started", model="tiny", loss="sigmoid", total_steps=1, recipe={}, device="cpu")
        log.write("run.finished", 1, seconds=1.0)
    make_adapter(run.checkpoint_path(1), tiny_model, seed=7)
    write_manifest(run.checkpoint_path(1))
    open_labelling(str(pairs), folder / "pairs.jsonl.labels.jsonl", again=0.0).answer("1")
    return folder


@pytest.mark.parametrize(("command", "words", "key"), CASES)
def test_stdout_is_the_result_alone(
    command: str,
    words: list[str],
    key: str | None,
    folder: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    words = [word.replace("MODEL", str(tiny_model)) for word in words]
    done = localdpo(*command.split(), *words, "--json")
    found = json.loads(done.stdout)
    assert key is None or key in found, done.stderr
    assert key is None or f"`{key}`" in documented_keys()[command]
