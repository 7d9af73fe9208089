"""Every command in README and docs is parsed here, and run in a small world of its own."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from command import localdpo
from fake_server import FakeServer

from localdpo.cli.main import command_tree
from localdpo.core.names import resolve

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
LINE = re.compile(r"^(?:\$ )?(?:\.venv/bin/)?((?:localdpo|mlx_lm\.\w+) .*)$", re.MULTILINE)

# What cannot be run here, and why. Each is parsed all the same.
NOT_RUN = {
    r"qwen3-0\.6b-ultrafeedback": "model and data come from the hub",
    r"import policy\.pt": "needs PyTorch; see tests/interop/test_peft.py",
    r"localdpo watch demo$": "a screen; see tests/cli/test_watch_command.py",
    r"localdpo serve": "goes on until it is stopped; see tests/interop/test_serve.py",
    r"prefs label": "takes a person at a terminal; see tests/cli/test_prefs_label_command.py",
    r"sweep .*5e-5$": "takes minutes; see tests/launch/test_sweep.py",
    r"rounds recipes/rounds\.yaml --rounds": "takes minutes; see tests/launch/test_rounds.py",
    r"runs sync": "needs the packages of the trackers; see tests/trackers",
    r"import \S+\.gguf": "needs a file of 100 MB; see tests/gguf/test_real_file.py",
}
# What stands for something of the reader's own.
PLACEHOLDERS = {
    "RUN": "demo",
    "DIR": "built",
    "mlx:MODEL": f"mlx:{resolve('demo:model')}",
    "/tmp/built": "drawn",
    # The world has a run of this name already.
    "--run demo": "--run again",
}
# Less of the same, so that it takes seconds.
LESS = {
    "train": ["train.max_steps=2", "eval.pairs=4", "eval.samples=0", "eval.kl_samples=0"],
    "eval": ["--limit", "4", "--max-tokens", "8"],
    "compare": ["--limit", "2", "--max-tokens", "8"],
    "prefs build": ["--limit", "4", "--max-tokens", "64", "--valid-count", "1"],
    "generate": ["--max-tokens", "8"],
}


def commands(page: Path) -> list[str]:
    """The commands in a page's blocks, in their order, without comments."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    text = "\n".join(block for language, block in blocks if language in ("", "bash")).replace("\\\n", " ")
    return [line.split("  #")[0].split(" # ")[0].strip() for line in LINE.findall(text)]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_documented_commands_are_understood(page: Path) -> None:
    for line in commands(page):
        program, *words = shlex.split(line)
        if program != "localdpo":
            continue
        context = command_tree().make_context("localdpo", words)
        while rest := [*context._protected_args, *context.args]:
            name, command, words = context.command.resolve_command(context, rest)
            context = command.make_context(name, words, parent=context)
            if not hasattr(command, "commands"):
                break


def test_what_is_not_run_is_in_the_pages() -> None:
    lines = [line for page in PAGES for line in commands(page)]
    assert [pattern for pattern in NOT_RUN if not any(re.search(pattern, line) for line in lines)] == []


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the pages suppose it: the recipes, a run of the demo, an adapter of PEFT, rows."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "recipes").symlink_to(ROOT / "recipes")
    (folder / "sft.yaml").symlink_to(ROOT / "recipes" / "sft.yaml")
    (folder / "localdpo").symlink_to(ROOT / "localdpo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (
            ["train", "recipes/dpo.yaml", "--plain", "--run", "demo", *LESS["train"], "eval.worst_pairs=4"],
            ["export", "demo", "--to", "peft", "--out", "peft-folder", "--force"],
        ):
            done = localdpo(*words)
            assert done.returncode == 0, done.stderr
    rows = [
        {"prompt": f"Say {word}.", "chosen": f"{word}!", "rejected": f"I will not say {word}."}
        for word in ("yes", "no", "tea", "rain", "wind", "snow")
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows)
    )
    return folder


@pytest.fixture
def judge_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    with FakeServer() as fake:
        monkeypatch.setenv("ANTHROPIC_BASE_URL", fake.url)
        monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-test-key-of-the-tests")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield fake


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name_of)
def test_documented_commands_run(
    page: Path, world: Path, judge_server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    for line in commands(page):
        if any(re.search(pattern, line) for pattern in NOT_RUN):
            continue
        line = line.replace("http://127.0.0.1:8080", judge_server.url)
        for word, meant in PLACEHOLDERS.items():
            line = re.sub(rf"(?<![\w-]){re.escape(word)}(?!\w)", meant, line)
        program, *words = shlex.split(line)
        if program == "localdpo":
            name = " ".join(words[: 1 + (words[0] == "prefs")])
            done = localdpo(*words, *LESS.get(name, []))
        else:
            command = [str(Path(sys.executable).parent / program), *words]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
