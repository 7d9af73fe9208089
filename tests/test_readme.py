"""README and docs tell the truth: what they name exists, and what is made from the code is current."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from typer.main import get_command

import localdpo
from localdpo.cli.doctor import KEYS
from localdpo.cli.main import app
from localdpo.core.names import PROGRAM_SWITCH
from localdpo.heuristics.checks import load_checks
from localdpo.heuristics.constraints import CONSTRAINTS
from localdpo.interop.targets import TARGETS
from localdpo.judging.registry import JUDGES
from localdpo.judging.rubric import load_constitution
from localdpo.recipe.load import parse_recipe
from localdpo.records import rundir
from localdpo.records.events import EVENT_TYPES, decode_event
from localdpo.records.rundir import LOCK_FD
from localdpo.trackers.registry import TRACKERS

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
_TABLE = re.compile(r"\b[A-Z]{4,}\b")
LINK = re.compile(r"(?<!`)\[[^\]\n]*\]\(([^)\s]+)\)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them of plain words."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\s-]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.skipif(
    f"typer=={version('typer')}\n" not in (ROOT / "requirements.txt").read_text(),
    reason="the pages show the help that the typer of requirements.txt prints",
)
def test_what_is_made_from_the_code_is_current() -> None:
    for page, text in generator().pages().items():
        assert text_of(page) == text, f"{name_of(page)}: run `python docs/generate.py`"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(text_of(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        # A page of the site may link to pages of the site only.
        assert page.parent != DOCS or target.parent == DOCS, link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_navigation_of_the_site_on_its_first_page_and_in_the_readme() -> None:
    nav = yaml.safe_load(text_of(ROOT / "mkdocs.yml"))["nav"]
    (home, *others) = (item for entry in nav for item in entry.items())
    assert sorted([home[1], *(path for _, path in others)]) == sorted(p.name for p in DOCS.glob("*.md"))
    assert re.findall(r"^\| \[(.*)\]\((.*?)\) \|", text_of(DOCS / home[1]), re.MULTILINE) == others
    readme = text_of(ROOT / "README.md").partition("## Where next")[2]
    assert [path for _, path in others if f"(docs/{path})" not in readme] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_and_options_that_are_named_exist(page: Path) -> None:
    root = get_command(app)
    # A command is named behind a prompt, in backticks, or with its folder.
    for line in re.findall(r"(?:\$ |`|\.venv/bin/)localdpo ([a-z][^\n`]*)", text_of(page)):
        command, words = root, line.split(" #")[0].split()
        while hasattr(command, "commands"):
            if not words:  # the whole group is meant
                break
            assert words[0] in command.commands, line
            command = command.commands[words.pop(0)]
        known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {
            "--help"
        }
        named = {word for word in words if re.fullmatch(r"--[a-z-]+", word)}
        assert named <= known, f"{line}: no {', '.join(sorted(named - known))}"


def test_make_targets_are_named_where_people_look() -> None:
    makefile = text_of(ROOT / "Makefile")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)) - {"style", "types", "pytest"}
    assert set(re.findall(r"^# make ([a-z-]+)  ", makefile, re.MULTILINE)) == targets
    rows = re.findall(r"^\| (`make .*?) \| ", text_of(ROOT / "CONTRIBUTING.md"), re.MULTILINE)
    assert set(re.findall(r"`make ([a-z-]+)`", "".join(rows))) == targets
    for page in PAGES:
        named = set(re.findall(r"(?:^|`)make ([a-z-]+)", text_of(page), re.MULTILINE))
        assert named <= targets, name_of(page)


def test_files_that_are_named_exist() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:recipes|tests|localdpo|docs)/[\w./-]+)`", text_of(page)):
            assert (ROOT / name).exists(), f"{name_of(page)}: {name}"


def test_tables_that_the_design_names_are_where_it_says() -> None:
    rows = re.findall(r"^\| an? .*", text_of(DOCS / "design.md"), re.MULTILINE)
    named = {
        (table, *re.findall(r"`(localdpo/[\w/]+\.py)`", row)) for row in rows for table in _TABLE.findall(row)
    }
    assert len(named) > 8
    for table, *files in named:
        assert any(re.search(rf"^{table}\b", text_of(ROOT / file), re.MULTILINE) for file in files), table


def test_pictures_are_there_and_load_nothing() -> None:
    for page in PAGES:
        for picture in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text_of(page)):
            text = (page.parent / picture).read_text(encoding="utf-8")
            assert not re.search(r"url\(['\"]?http|href=['\"]http|@import|<script", text)


def test_every_event_is_described() -> None:
    named = set(re.findall(r"`([a-z.]+)`", text_of(DOCS / "run-folder.md")))
    assert named >= EVENT_TYPES


def test_lists_that_are_kept_by_hand_are_whole() -> None:
    sources = "".join(text_of(path) for path in sorted((ROOT / "localdpo").rglob("*.py")))
    switches = set(re.findall(r"\"(LOCALDPO_[A-Z_]+)\"", sources)) - {LOCK_FD, PROGRAM_SWITCH}
    tools = re.findall(r"\btools\.(\w+)", text_of(ROOT / "localdpo" / "api" / "tools.py"))
    judging = ROOT / "localdpo" / "judging"
    shipped = [path.stem for folder in ("rubrics", "constitutions") for path in (judging / folder).iterdir()]
    for page, names in {
        "docs/commands.md": [*switches, *KEYS],
        "docs/judging.md": [*JUDGES, "jury", *shipped],
        "docs/export.md": TARGETS,
        "README.md": TARGETS,
        "docs/trackers.md": TRACKERS,
        "docs/mcp.md": tools,
        "docs/run-folder.md": re.findall(r"^    (\w[\w.]*)/? ", rundir.__doc__ or "", re.MULTILINE),
        "docs/api.md": set(localdpo.__all__) - {"__version__"},
    }.items():
        # In code, spans or blocks: `mlx:MODEL` names mlx, `localdpo.compare(run)` compare.
        code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text_of(ROOT / page), re.DOTALL))
        named = {word.strip(".") for word in re.findall(r"[\w.-]+", code)} | set(re.findall(r"[\w-]+", code))
        assert [name for name in names if name not in named] == [], page


def test_python_that_is_shown_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # without the run that is named: its log is empty
    blocks = [
        block
        for page in PAGES
        if page.name != "api.md"  # tests/api/test_api_page.py
        for block in re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL)
    ]
    assert blocks
    for block in blocks:
        exec(compile(block, "docs", "exec"), {})


@pytest.mark.parametrize("page", [page for page in PAGES if "```yaml" in text_of(page)], ids=name_of)
def test_yaml_that_is_shown_is_read(page: Path, tmp_path: Path) -> None:
    file = tmp_path / "shown.yaml"
    for block in re.findall(r"```yaml\n(.*?)```", text_of(page), re.DOTALL):
        file.write_text(block)
        first = block.partition(":")[0]
        if first == "checks":
            assert load_checks(file)
        elif first == "principles":
            assert load_constitution(str(file))
        else:  # a recipe, or a part of one
            missing = {"model": "model: m\n", "data": "data: {train: pairs.jsonl}\n"}
            text = "".join(line for key, line in missing.items() if f"{key}:" not in block) + block
            parse_recipe(text, file.name)


def test_json_that_is_shown_is_read() -> None:
    blocks = [block for page in PAGES for block in re.findall(r"```json\n(.*?)```", text_of(page), re.DOTALL)]
    lines = [line for block in blocks for line in (block.splitlines() if block.count("\n{") else [block])]
    assert len(lines) > 6
    for line in lines:
        shown = json.loads(line)
        if "crc" in shown:
            assert decode_event(line.encode()) is not None
        for constraint in shown.get("constraints", []):
            constraint = dict(constraint)
            CONSTRAINTS[constraint.pop("kind")].holds("An answer.", **constraint)


def test_the_floors_of_the_design_are_those_of_the_contract() -> None:
    contracts = tomllib.loads(text_of(ROOT / "pyproject.toml"))["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "floors")
    rows = re.findall(r"^\| \d+ \| (`.*?`) \|", text_of(DOCS / "design.md"), re.MULTILINE)
    assert [set(re.findall(r"\w+", row)) for row in rows] == [
        set(re.findall(r"\w+", layer)) for layer in layers
    ]
