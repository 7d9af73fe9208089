"""The README tells the truth: its table of options and its commands."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from localdpo.cli.main import app
from localdpo.data.formats import FORMATS
from localdpo.recipe.describe import options_table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_options_is_the_schema() -> None:
    wanted = [f"| `{o.key}` | {o.type} | {o.default} | {o.description} |" for o in options_table()]
    table = README[README.index("## Every option") :]
    assert [line for line in table.splitlines() if line.startswith("| `")] == wanted


def test_every_command_is_described() -> None:
    commands = get_command(app).commands  # type: ignore[attr-defined]
    section = README[README.index("## Commands") : README.index("## A run's folder")]
    assert set(re.findall(r"^\| `localdpo (\w+)", section, re.MULTILINE)) == set(commands)


def test_recipes_that_are_named_exist() -> None:
    named = set(re.findall(r"recipes/([\w.-]+\.yaml)", README))
    assert named
    assert all((ROOT / "recipes" / name).is_file() for name in named)


def test_pictures_are_there_and_load_nothing() -> None:
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    for picture in pictures:
        text = (ROOT / picture).read_text(encoding="utf-8")
        assert not re.search(r"url\(['\"]?http|href=['\"]http|@import|<script", text)


def test_every_data_format_is_named() -> None:
    section = README[README.index("Formats of pairs, told") : README.index("## Commands")]
    named = set(re.findall(r"[\w-]+", section)) | {
        f"argilla{end}" for end in ("-prompt", "-question", "-input")
    }
    assert {entry.name for entry in FORMATS if entry.kind != "prompts"} <= named
