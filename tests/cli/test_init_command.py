"""`localdpo init` and `localdpo schema`, as a person calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from localdpo.cli.init import STARTERS, starters
from localdpo.cli.main import app
from localdpo.core.errors import UserError, UserErrors
from localdpo.recipe.load import load_recipe

runner = CliRunner()


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_starters_are_listed_with_what_they_are() -> None:
    lines = runner.invoke(app, ["init"], catch_exceptions=False).stdout.splitlines()
    assert lines[0].startswith("cdpo ")
    assert lines[0].endswith("  Conservative DPO: one label in ten may be swapped")
    assert max(map(len, lines[: len(starters())])) <= 84
    assert [line.split()[0] for line in lines[:-2]] == [path.stem for path in starters()]


def test_the_demos_starters_run_where_they_are_written() -> None:
    result = runner.invoke(app, ["init", "demo", "--dir", "demo"], catch_exceptions=False)
    assert result.stdout.endswith("run it: localdpo train demo/dpo.yaml\n")
    assert json.loads(Path("demo/recipe.schema.json").read_text())["title"] == "A recipe of localdpo"
    written = sorted(Path("demo").glob("*.yaml"), key=lambda path: path.stem)
    assert [path.stem for path in written] == ["cdpo", "dpo", "dpo-too-hot", "ipo", "kto", "rounds", "sft"]
    for path in written:
        assert load_recipe(path) == load_recipe(STARTERS / path.name)
        command = "rounds" if path.stem == "rounds" else "train"
        assert f"# localdpo {command} {path}" in path.read_text().splitlines()
        assert "recipes/" not in path.read_text()


@pytest.mark.parametrize("name", ["rounds", "ipo"])
def test_the_command_that_is_printed_is_the_starters_own_and_fits_a_shell(name: str) -> None:
    result = runner.invoke(app, ["init", name, "--dir", "my recipes"], catch_exceptions=False)
    command = f"localdpo {'rounds' if name == 'rounds' else 'train'} 'my recipes/{name}.yaml'"
    assert result.stdout.splitlines()[-1] == f"run it: {command}"
    assert f"# {command}" in Path(f"my recipes/{name}.yaml").read_text().splitlines()


def test_the_same_command_goes_on_where_a_full_disk_ended_it() -> None:
    for _ in range(2):
        assert runner.invoke(app, ["init", "demo"], catch_exceptions=False).exit_code == 0
        Path("ipo.yaml").unlink()
        Path("recipe.schema.json").unlink()


def test_a_folder_that_cannot_be_made_is_said() -> None:
    Path("file").touch()
    for folder in ("file", "file/below"):
        with pytest.raises(UserError, match=f"{folder}: this folder cannot be made .*; name another"):
            runner.invoke(app, ["init", "dpo", "--dir", folder], catch_exceptions=False)


def test_nothing_is_replaced_without_force() -> None:
    runner.invoke(app, ["init", "dpo"], catch_exceptions=False)
    Path("dpo.yaml").write_text("mine")
    with pytest.raises(UserErrors, match=r"dpo\.yaml: exists already; --force replaces it"):
        runner.invoke(app, ["init", "demo"], catch_exceptions=False)
    assert [path.name for path in sorted(Path().iterdir())] == ["dpo.yaml", "recipe.schema.json"]
    runner.invoke(app, ["init", "dpo", "--force"], catch_exceptions=False)
    load_recipe("dpo.yaml")


def test_a_recipe_from_another_programs_file() -> None:
    Path("mine.yaml").write_text(
        "model: demo:model\ndata: demo:demonstrations/train\nmask_prompt: true\nodd: 3\n"
    )
    result = runner.invoke(app, ["init", "sft", "--from", "mlx-lm", "mine.yaml"], catch_exceptions=False)
    assert "no counterpart: odd: 3\n" in result.stdout
    assert "# no counterpart: odd: 3\n" in Path("sft.yaml").read_text()
    assert load_recipe("sft.yaml").train.max_steps == 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["."], "init .: is a folder; expected `localdpo init NAME --dir .`"),
        (["dop"], "init dop: no such starter; expected demo or one of cdpo, dpo, dpo-too-hot, ipo"),
        (
            ["--from", "unsloth", "a.yaml"],
            "--from unsloth: expected one of trl, mlx-lm, axolotl, and its file",
        ),
        (["--from", "trl", "a.yaml"], "a.yaml: cannot be read: No such file"),
        (
            ["--from", "trl", "list.yaml"],
            "list.yaml: expected options of TRL by name, such as model_name_or_path",
        ),
        (["--from", "trl", "empty.yaml"], "empty.yaml: is the file itself; give the recipe another NAME"),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    Path("list.yaml").write_text("- a\n")
    Path("empty.yaml").write_text("{}\n")
    with pytest.raises(UserError) as error:
        runner.invoke(app, ["init", *arguments], catch_exceptions=False)
    assert str(error.value).startswith(message)


def test_the_schema_is_json() -> None:
    result = runner.invoke(app, ["schema"], catch_exceptions=False)
    assert json.loads(result.stdout)["required"] == ["model", "data"]


def test_text_of_a_file_stays_in_its_comment() -> None:
    Path("t.json").write_text(json.dumps({"odd\ntrust_remote_code: true #": 1, "x\u2028y": "a\nb"}))
    runner.invoke(app, ["init", "mine", "--from", "trl", "t.json"], catch_exceptions=False)
    assert "trust_remote_code: true # 1" not in Path("mine.yaml").read_text().splitlines()
    assert "# no counterpart: odd trust_remote_code: true #: 1" in Path("mine.yaml").read_text().splitlines()
    folder = "a\\1\nb"
    runner.invoke(app, ["init", "dpo", "--dir", folder], catch_exceptions=False)
    assert "# localdpo train 'a\\1 b/dpo.yaml'" in Path(folder, "dpo.yaml").read_text().splitlines()


def test_a_schema_of_something_else_is_not_replaced() -> None:
    Path("recipe.schema.json").write_text("mine")
    with pytest.raises(UserErrors, match=r"recipe\.schema\.json: exists already"):
        runner.invoke(app, ["init", "dpo"], catch_exceptions=False)
    assert [path.name for path in Path().iterdir()] == ["recipe.schema.json"]
