from __future__ import annotations

import json
import subprocess
import sys

import pytest

from localdpo.cli import main

# pydantic is not among them: typer itself loads it to describe a command with options.
HEAVY = ("mlx", "numpy", "transformers", "datasets", "yaml", "rich", "textual", "anthropic", "scipy")


def localdpo(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "localdpo", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]):
    code = (
        "import sys, json\n"
        "from localdpo.cli.main import run\n"
        f"sys.argv = ['localdpo', *{arguments!r}]\n"
        "try: run()\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert set(HEAVY) & set(loaded) == set()


def test_help_names_every_command():
    done = localdpo("--help")
    assert done.returncode == 0
    for command in ("train", "runs", "compare", "inspect", "doctor"):
        assert f"\n  {command} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "error: no recipe"),
        (["train", "missing.yaml"], "error: missing.yaml"),
        (["train", "missing.yaml", "beta"], "error: beta: expected KEY=VALUE"),
        (["train", "missing.yaml", "--run", "a/b"], "error: 'a/b' is no name for a run"),
        (
            ["train", "--resume", "--run", "x", "--runs-dir", "/nonexistent"],
            "error: /nonexistent: no runs here",
        ),
        (["compare", "--runs-dir", "/nonexistent"], "error: /nonexistent: no runs here"),
    ],
)
def test_a_mistake_is_a_line_and_exit_code_2(arguments: list[str], said: str):
    done = localdpo(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [["trian"], ["train", "--nope"], ["compare", "--limit", "0"]])
def test_wrong_usage_exits_2_too(arguments: list[str]):
    done = localdpo(*arguments)
    assert done.returncode == 2
    assert "Error" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_arguments_show_the_help():
    done = localdpo()
    assert "Usage" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_device_that_gave_up_is_one_line_and_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(error: Exception) -> None:
        raise error

    monkeypatch.setattr(main, "guard", lambda: None)
    monkeypatch.setattr(main, "app", lambda: fail(RuntimeError("cudaMalloc failed: out of memory")))
    with pytest.raises(SystemExit) as end:
        main.run()
    assert end.value.code == 4
    assert capsys.readouterr().err == (
        "error: the GPU ran out of memory: close other programs, lower --max-tokens, or take a smaller model "
        "(cudaMalloc failed: out of memory)\n"
    )
    monkeypatch.setattr(main, "app", lambda: fail(RuntimeError("bad shapes")))
    with pytest.raises(RuntimeError, match="bad shapes"):
        main.run()
