from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from command import localdpo

from localdpo.__main__ import run
from localdpo.cli import main
from localdpo.core.names import PROGRAM_SWITCH
from localdpo.dashboard.keymap import SCREEN_TITLES
from localdpo.interop.targets import TARGETS
from localdpo.judging.registry import JUDGES
from localdpo.recipe.elsewhere import PROGRAMS
from localdpo.trackers.registry import TRACKERS
from localdpo.train.bench import SHAPES

pytestmark = pytest.mark.slow

# pydantic is not among them: typer itself loads it to describe a command with options.
HEAVY = ("mlx", "numpy", "transformers", "datasets", "yaml", "rich", "textual", "anthropic", "scipy")


def test_help_loads_nothing_heavy():
    code = (
        "import sys, json\n"
        "from localdpo.cli.main import run\n"
        "for arguments in (['--help'], ['train', '--help'], ['--version']):\n"
        "    sys.argv = ['localdpo', *arguments]\n"
        "    try: run()\n"
        "    except SystemExit as end: assert not end.code, end.code\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    loaded = json.loads(done.stdout.splitlines()[-1])
    assert set(HEAVY) & set(loaded) == set()


def test_ctrl_c_while_the_program_is_loaded_ends_it_quietly(monkeypatch: pytest.MonkeyPatch):
    class Interrupted:
        @staticmethod
        def find_spec(name: str, *where: Any) -> None:
            if name == "localdpo.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "localdpo.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code == 130


@pytest.mark.parametrize("group", ["", "prefs", "runs"])
def test_help_has_a_whole_line_for_every_command(group: str) -> None:
    lines = localdpo(*group.split(), "--help").stdout.partition("Options:")[2].splitlines()
    tree = main.command_tree()
    names = (tree.commands[group] if group else tree).commands
    for name in names:
        (line,) = (line for line in lines if line.startswith(f"  {name} "))
        assert line.endswith("."), line
        assert not line.endswith("..."), f"{line}: make its first sentence shorter"


def test_help_names_all_that_a_table_has() -> None:
    judges = [entry.form for entry in JUDGES.values()]
    for words, option, names in (
        ("eval", "--judge", judges),
        ("prefs build", "--judge", [form for form in judges if form != "human"]),
        ("sweep", "--judge", [form for form in judges if form != "human"]),
        ("export", "--to", TARGETS),
        ("runs sync", "--to", TRACKERS),
        ("init", "--from", PROGRAMS),
        ("bench", "SHAPE", SHAPES),
        ("watch", "--screen", SCREEN_TITLES),
    ):
        (parameter,) = (each for each in commands()[words].params if option in (*each.opts, each.metavar))
        said = re.findall(r"[\w.:#+\[\]-]*\w\]?", f"{parameter.metavar} {parameter.help}")
        assert [name for name in names if name not in said] == [], f"{words} {option}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "error: no recipe"),
        (["train", "missing.yaml"], "error: missing.yaml"),
        (["train", "missing.yaml", "beta"], "error: beta: expected KEY=VALUE"),
        (["train", "missing.yaml", "--run", "a:b"], "error: 'a:b' is no name for a run"),
        (
            ["train", "--resume", "--run", "x", "--runs-dir", "/nonexistent"],
            "error: /nonexistent: no runs here",
        ),
        (["compare", "--runs-dir", "/nonexistent"], "error: /nonexistent: no runs here"),
    ],
)
def test_a_mistake_is_a_line_and_exit_code_2(arguments: list[str], said: str):
    done = localdpo(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def commands() -> dict[str, Any]:
    """Every command by its words, such as `prefs check`."""
    found: dict[str, Any] = {}
    for name, command in main.command_tree().commands.items():
        inner = getattr(command, "commands", None) or {"": command}
        found |= {f"{name} {inner_name}".strip(): leaf for inner_name, leaf in inner.items()}
    return found


def usage_mistakes(command: Any) -> Iterator[list[str]]:
    """An option that does not exist, options without a value, a missing argument, one argument too many."""
    yield ["--nope"]
    yield from (
        [parameter.opts[0]]
        for parameter in command.params
        if parameter.param_type_name == "option" and not parameter.is_flag
    )
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    if any(parameter.required for parameter in arguments):
        yield []
    if all(parameter.nargs == 1 for parameter in arguments):
        yield ["x"] * (len(arguments) + 1)


@pytest.mark.parametrize("words", commands())
def test_every_usage_mistake_is_one_error_line(words: str):
    for arguments in usage_mistakes(commands()[words]):
        done = localdpo(*words.split(), *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("error: ")
        assert done.stderr.endswith(f"; see `localdpo {words} --help`\n")
        assert done.stderr.count("\n") == 1


def floats() -> Iterator[tuple[str, str]]:
    """Every option for a number that need not be whole, after the words of its command."""
    for words, command in commands().items():
        types = get_type_hints(command.callback)
        for parameter in command.params:
            if types.get(parameter.name) in (float, float | None):
                yield words, parameter.opts[0]


@pytest.mark.parametrize(("words", "option"), list(floats()))
@pytest.mark.parametrize("number", ["inf", "nan"])
def test_an_option_for_a_number_takes_neither_infinity_nor_nan(words: str, option: str, number: str):
    done = localdpo(*words.split(), option, number)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {option}")
    assert done.stderr.count("\n") == 1


def test_a_long_name_of_the_program_makes_no_gaps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PROGRAM_SWITCH, f"/{'long/' * 20}localdpo")
    error = localdpo("train", "--nope").stderr
    assert "localdpo train [OPTIONS] [RECIPE] [KEY=VALUE]...`" in error
    assert "  " not in error


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["trian"],
            "error: no such command 'trian'; did you mean 'train'; expected one of "
            f"{', '.join(main.command_tree().commands)}; see `localdpo --help`",
        ),
        (
            ["prefs", "nope"],
            "error: no such command 'nope'; expected one of build, label, check, clean, convert, split; "
            "see `localdpo prefs --help`",
        ),
        (
            ["train", "--nope"],
            "error: no such option: --nope; expected `localdpo train [OPTIONS] [RECIPE] [KEY=VALUE]...`; "
            "see `localdpo train --help`",
        ),
        (
            ["compare", "--limit", "0"],
            "error: --limit: the value should be greater than or equal to 1; see `localdpo compare --help`",
        ),
        (
            ["inspect", "--split", "x"],
            "error: --split: 'x' is not one of 'valid', 'train'; see `localdpo inspect --help`",
        ),
    ],
)
def test_a_usage_error_names_what_was_expected_and_the_help_to_read(arguments: list[str], line: str):
    done = localdpo(*arguments)
    assert (done.returncode, done.stderr) == (2, line + "\n")


@pytest.mark.parametrize("arguments", [[], ["prefs"]])
def test_a_group_of_commands_without_one_shows_its_help(arguments: list[str]):
    done = localdpo(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith(" ".join(["Usage: localdpo", *arguments, "[OPTIONS] COMMAND"]))


def test_a_device_that_gave_up_is_one_line_and_a_bug_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def fail(error: Exception) -> None:
        raise error

    monkeypatch.setattr(main, "guard", lambda: None)
    monkeypatch.setattr(
        main, "command_tree", lambda: lambda **options: fail(RuntimeError("cudaMalloc failed: out of memory"))
    )
    with pytest.raises(SystemExit) as end:
        main.run()
    assert end.value.code == 4
    assert capsys.readouterr().err == (
        "error: the GPU ran out of memory: close other programs, lower --max-tokens, or take a smaller model "
        "(cudaMalloc failed: out of memory)\n"
    )
    monkeypatch.setattr(main, "command_tree", lambda: lambda **options: fail(RuntimeError("bad shapes")))
    with pytest.raises(RuntimeError, match="bad shapes"):
        main.run()


def test_what_a_disk_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def read_only(**options: object) -> None:
        raise PermissionError(13, "Permission denied", str(tmp_path / ".report.html.tmp-0123456789ab"))

    monkeypatch.setattr(main, "guard", lambda: None)
    monkeypatch.setattr(main, "command_tree", lambda: read_only)
    with pytest.raises(SystemExit) as end:
        main.run()
    assert end.value.code == 2
    path = tmp_path / "report.html"
    assert capsys.readouterr().err == f"error: {path}: cannot be read or written (Permission denied)\n"


def test_a_name_that_is_too_long_is_one_line():
    done = localdpo("runs", "--runs-dir", "x" * 300)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"error: {'x' * 300}: cannot be read or written (File name too long)\n"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("localdpo wat", ["watch"]),
        ("localdpo compare ", ["tiny"]),
        ("localdpo ctl t", ["tiny"]),
        ("localdpo train --run t", ["tiny"]),
        ("localdpo watch --runs-dir other t", ["two"]),
        ("localdpo train r", []),  # files, by the shell
    ],
)
def test_a_shell_completes_commands_and_runs(
    words: str, found: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("runs/tiny", "other/two"):
        Path(path).mkdir(parents=True)
        Path(path, "recipe.yaml").write_text("model: m")
    monkeypatch.setenv("_LOCALDPO_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    assert localdpo().stdout.split() == found


def test_the_completion_of_a_shell_is_shown_by_the_name_that_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda: ("bash", "/bin/bash"))
    monkeypatch.setattr("localdpo.cli.main.program", lambda: ".venv/bin/localdpo")
    assert "complete -o default -F _localdpo_completion localdpo" in localdpo("--show-completion").stdout


def test_a_closed_stdin_reads_as_an_empty_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    monkeypatch.setattr("sys.argv", ["localdpo", "init", "--help"])
    with pytest.raises(SystemExit, match="0"):
        main.run()
    assert sys.stdin.read() == ""
    sys.stdin.close()
