"""What is released: sdist and wheel hold everything, and the wheel works far from this folder."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

import localdpo

pytestmark = pytest.mark.long
ROOT = Path(__file__).resolve().parent.parent


def run(*command: str | Path, cwd: Path) -> str:
    """The output of a command that must succeed, without what the tests' own environment brings along."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of the unpacked sdist, and the wheel that is built there."""
    out = tmp_path_factory.mktemp("dist")
    build = (sys.executable, "-m", "hatchling", "build", "-d", out, "-t")
    run(*build, "sdist", cwd=ROOT)
    with tarfile.open(out / f"localdpo-{localdpo.__version__}.tar.gz") as archive:
        archive.extractall(out, filter="data")
    source = out / f"localdpo-{localdpo.__version__}"
    run(*build, "wheel", cwd=source)
    return source, out / f"localdpo-{localdpo.__version__}-py3-none-any.whl"


def test_the_wheel_holds_the_package_and_says_what_it_is(released: tuple[Path, Path]) -> None:
    source, wheel = released
    package = [
        path
        for folder in (ROOT / "localdpo", ROOT / "localdpo/recipe/starters")
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    with zipfile.ZipFile(wheel) as archive:
        info = f"localdpo-{localdpo.__version__}.dist-info"
        names = {name for name in archive.namelist() if not name.startswith(info)}
        assert names == {str(path.relative_to(ROOT)) for path in package}
        about = email.message_from_bytes(archive.read(f"{info}/METADATA"))
        assert f"{info}/licenses/LICENSE" in archive.namelist()
    assert (about["Name"], about["Version"]) == ("localdpo", localdpo.__version__)
    assert about["Description-Content-Type"] == "text/markdown"
    assert about.get_payload() == (ROOT / "README.md").read_text()
    # Nothing of the repository that tests and Makefile read is missing from the sdist.
    for name in ("recipes/dpo.yaml", "docs/generate.py", "tests/conftest.py", "Makefile", "requirements.txt"):
        assert (source / name).is_file()


def test_the_version_is_that_of_the_changelog() -> None:
    heading = next(
        line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")
    )
    assert heading.split()[1] == localdpo.__version__


def test_the_wheel_trains_in_an_environment_of_its_own(released: tuple[Path, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv/bin/python"
    site = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path).strip()
    )
    # The dependencies are those of this environment; its link to the repository is not followed from here.
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index")
    run(*pip, "--no-warn-script-location", released[1], cwd=tmp_path)
    assert Path(
        run(python, "-c", "import localdpo; print(localdpo.__file__)", cwd=tmp_path).strip()
    ).is_relative_to(site)
    program = tmp_path / "venv/bin/localdpo"
    assert run(program, "--version", cwd=tmp_path) == f"localdpo {localdpo.__version__}\n"
    run(program, "init", "demo", cwd=tmp_path)
    run(program, "train", "dpo.yaml", "--plain", "train.max_steps=2", "eval.samples=0", cwd=tmp_path)
    assert (tmp_path / "runs/dpo/checkpoints/LATEST/adapters.safetensors").is_file()
