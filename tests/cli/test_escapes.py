"""Whatever rows, names, recipes, logs and arguments hold: no command lets it steer the terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import typer
from tiny_folders import make_adapter, recipe_text, write_rows

from localdpo.cli.main import app, run
from localdpo.cli.prefs import journal_of
from localdpo.core.atomic import write_manifest
from localdpo.core.text import escaped
from localdpo.out import UNREAD_EXIT
from localdpo.prefs.label import open_labelling
from localdpo.recipe.load import dump_recipe, load_recipe
from localdpo.records.checkpoints import set_latest
from localdpo.records.events import encode_event
from localdpo.records.rundir import RunDir

pytestmark = pytest.mark.slow

# A colour, a copy to the clipboard, a title, C1, cursor keys back, DEL, a reordering, markup of two kinds.
HOSTILE = "\x1b[38;5;199m\x1b]52;c;SEVZ\x07\x1b]0;t\x1b\\\x9b2J\r\b\x7f\u202e[red][link=x][@click=app.quit]"
NAME = "a\x1b]52;c;SEVZ\x07\x9b2J\r\u202e[red]"
# What rich itself writes: styles; and how a bar goes back to its line, hides and shows the cursor.
RICH = re.compile(r"\x1b\[[0-9;]*m|\r?\x1b\[(?:2K|1A|\?25[lh])|\r(?=\x1b\[2K)")

# They talk or serve until they are left.
WITHOUT_END = {"chat", "serve", "mcp"}
COMMANDS: dict[str, list[list[str]]] = {
    "init": [[], [HOSTILE], ["x", "--from", "trl", HOSTILE]],
    "schema": [[]],
    "bench": [[HOSTILE]],
    "train": [
        ["RECIPE", "--dry-run"],
        ["RECIPE", f"data.train={HOSTILE}", "--dry-run"],
        ["RECIPE", f"{HOSTILE}=1"],
        ["RECIPE", "--run", "tiny"],
        [HOSTILE],
        ["RECIPE", "--run", HOSTILE],
    ],
    "hosts": [["--file", HOSTILE]],
    "rounds": [[HOSTILE], ["RECIPE", "--run", HOSTILE]],
    "sweep": [
        [HOSTILE, "loss.beta=0.1,0.2"],
        ["RECIPE", f"{HOSTILE}=1,2"],
        ["RECIPE", f"data.train={HOSTILE},x", "--dry-run"],
        ["--show", "--run", HOSTILE],
    ],
    "ctl": [["tiny", HOSTILE], [HOSTILE, "pause"]],
    "watch": [["--once", "--screen", screen] for screen in ("live", "samples", "runs")],
    "runs": [[], ["--json"]],
    "runs sync": [["tiny", "--to", HOSTILE], [HOSTILE]],
    "compare": [["tiny", "--max-tokens", "3", *how] for how in (["--plain"], ["--json"], ["--html", "PAGE"])],
    "eval": [
        ["tiny", "--dry-run"],
        ["tiny", "--max-tokens", "3"],
        ["tiny", "--max-tokens", "3", "--json"],
        ["tiny", "--judge", HOSTILE],
        ["tiny", "--name", HOSTILE],
        ["tiny", "--prompts", HOSTILE],
    ],
    "generate": [
        ["tiny", "--prompt", "x", "--max-tokens", "3"],
        ["tiny", "--prompt", "x", "--checkpoint", HOSTILE],
    ],
    "export": [
        ["tiny", "--to", "peft", "--out", "OUT", "--force"],
        ["tiny", "--to", "peft", "--out", "OUT", "--force", "--json"],
        ["tiny", "--to", HOSTILE],
        ["tiny", "--to", "peft", "--checkpoint", HOSTILE],
    ],
    "import": [[HOSTILE, "OUT"]],
    "inspect": [["tiny"], ["tiny", "--pair", "1"], ["tiny", "--json"], [HOSTILE]],
    "report": [["tiny"], ["tiny", "--html", f"/nowhere{HOSTILE}/x"]],
    "doctor": [[], ["--json"]],
    "prefs build": [
        [
            "PROMPTS",
            "--out",
            "OUT",
            "--model",
            "MODEL",
            "--judge",
            "openai:http://127.0.0.1:9#m",
            "--dry-run",
        ],
        [HOSTILE, "--out", "OUT", "--model", "MODEL"],
        ["PROMPTS", "--out", "OUT", "--model", HOSTILE],
    ],
    "prefs label": [["PAIRS", "--plain"], [HOSTILE, "--plain"]],
    "prefs check": [["PAIRS"], ["PAIRS", "--json"], [HOSTILE]],
    "prefs clean": [["PAIRS", f"CLEAN{NAME}.jsonl", "--force"], ["PAIRS", "CLEAN", "--drop", HOSTILE]],
    "prefs split": [
        ["PAIRS", f"CLEAN{NAME}.t.jsonl", f"CLEAN{NAME}.v.jsonl", "--valid-count", "1", "--force"],
        [HOSTILE, "CLEAN", "CLEAN2"],
    ],
    "prefs convert": [
        ["PAIRS", f"CONVERTED{NAME}.jsonl", "--to", "openai", "--force"],
        ["PAIRS", "C", "--to", HOSTILE],
    ],
}
# Every command once with rows and runs that are hostile, and every hostile argument, stay in `make test`; but
# for an export, which takes seconds.
CASES = [
    pytest.param(
        [*command.split(), *words],
        id=f"{command} {number}",
        marks=[pytest.mark.long] if (number or command == "export") and HOSTILE not in "".join(words) else [],
    )
    for command, every in COMMANDS.items()
    for number, words in enumerate(every)
]


def commands(group: object, before: str = "") -> Iterator[str]:
    """Every command of the app, `prefs check` too."""
    for name, one in getattr(group, "commands", {}).items():
        below = list(commands(one, f"{before}{name} "))
        yield from below
        if not below or one.invoke_without_command:
            yield f"{before}{name}"


def test_every_command_is_tried() -> None:
    assert set(commands(typer.main.get_command(app))) - WITHOUT_END == set(COMMANDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """Rows, a recipe and runs that hold HOSTILE wherever a text may stand."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = [
        {"prompt": f"{n} {HOSTILE}", "chosen": f"yes {HOSTILE}", "rejected": f"no {n}", HOSTILE: HOSTILE}
        for n in range(3)
    ]
    pairs = write_rows(folder / "pairs.jsonl", rows)
    prompts = write_rows(folder / "prompts.jsonl", [{"prompt": f"{n}? {HOSTILE}"} for n in range(2)])
    # A recipe refuses such a path; a command line does not.
    for path in (pairs, prompts):
        path.with_stem(f"{path.stem}{NAME}").write_bytes(path.read_bytes())
    recipe = recipe_text(tiny_model, pairs, pairs, eval={"prompts": str(prompts)})
    (folder / "recipe.yaml").write_text(recipe)
    labelled = str(folder / f"pairs{NAME}.jsonl")
    open_labelling(labelled, journal_of(labelled), again=0.0).answer("1")
    run = RunDir(folder / "runs" / "tiny")
    for one in (run, RunDir(folder / "runs" / NAME)):
        one.path.mkdir(parents=True)
        one.recipe.write_text(dump_recipe(load_recipe(folder / "recipe.yaml")))
        one.worker_log.write_text(f"{HOSTILE}\nerror: {HOSTILE}\n")
        said = {"message": HOSTILE, "why": HOSTILE, "level": "warning", "name": HOSTILE}
        sample = {"prompt": HOSTILE, "policy": HOSTILE, "reference": f"{HOSTILE} b"}
        one.events.write_bytes(
            b"".join(
                encode_event(type, step, 1e9 + (step or 0), data)
                for type, step, data in (
                    (
                        "run.started",
                        None,
                        {"model": HOSTILE, "loss": HOSTILE, "total_steps": 3},
                    ),
                    ("notice", 1, said),
                    ("samples", 2, {"samples": [sample]}),
                    ("run.finished", 3, {"seconds": 1.0}),
                )
            )
        )
    make_adapter(run.checkpoint_path(3), tiny_model, seed=7)
    write_manifest(run.checkpoint_path(3))
    set_latest(run.checkpoint_path(3))
    return folder


@pytest.fixture
def words_of(folder: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable:
    """Puts paths in the place of the words in capitals; every command runs beside the hostile runs."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    places = {
        "RECIPE": folder / "recipe.yaml",
        "PAIRS": folder / f"pairs{NAME}.jsonl",
        "PROMPTS": folder / f"prompts{NAME}.jsonl",
        "MODEL": tiny_model,
        "PAGE": tmp_path / f"{NAME}.html",
        "OUT": tmp_path / f"out{NAME}",
    }

    def put(words: list[str]) -> list[str]:
        found = [str(places.get(word, word)) for word in words]
        return [str(tmp_path / word) if word.startswith(("CLEAN", "CONVERTED")) else word for word in found]

    return put


@contextmanager
def streams(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, said: list[str]) -> Iterator[None]:
    """stdout and stderr of this process are a terminal or a pipe; `said` gets what was written to it."""
    far, near = pty.openpty() if terminal else os.pipe()
    parts: list[bytes] = []

    def read() -> None:
        try:
            while part := os.read(far, 1 << 16):
                parts.append(part)
        except OSError:  # a terminal whose other end is closed
            pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with open(near, "w", encoding="utf-8") as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            monkeypatch.setattr(sys, "stderr", stream)
            yield
    finally:
        monkeypatch.undo()
        reader.join(30)
        os.close(far)
        said.append(b"".join(parts).decode().replace("\r\n", "\n"))


def done(arguments: list[str], *, terminal: bool, **environment: str) -> str:
    """What the command writes."""
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch, streams(patch, terminal=terminal, said=said):
        patch.setattr(sys, "argv", ["localdpo", *arguments])
        for name, value in environment.items():
            patch.setenv(name, value)
        with pytest.raises(SystemExit):
            run()
    return said[0]


def foreign(text: str) -> list[str]:
    """The characters of `text` that steer a terminal."""
    return [char for char in text if escaped(char) != char]


@pytest.mark.parametrize("words", CASES)
def test_nothing_steers_a_terminal_or_a_pipe(words: list[str], words_of: Callable) -> None:
    arguments = words_of(words)
    coloured = done(arguments, terminal=True, TERM="xterm-256color", COLORTERM="truecolor")
    assert "\x1b[38;5;199m" not in coloured
    assert foreign(RICH.sub("", coloured)) == []
    plain = done(arguments, terminal=True, TERM="dumb", NO_COLOR="1")
    assert foreign(plain) == []
    piped = done(arguments, terminal=False)
    assert foreign(piped) == []
    assert "Traceback" not in coloured + plain + piped
    assert ("error: " in piped) == ("error: " in plain) == (HOSTILE in " ".join(words)), piped
    if "--json" in words:
        opening = re.search(r"^[\[{]", piped, re.MULTILINE)
        assert opening is not None, piped
        assert json.loads(piped[opening.start() :])


@pytest.mark.parametrize("command", list(COMMANDS))
def test_wrong_usage_is_escaped_too(command: str) -> None:
    said = done([*command.split(), f"--{HOSTILE}"], terminal=False)
    assert "\\x1b]52;c;SEVZ\\x07" in said
    assert foreign(said) == []


def test_an_unknown_command_is_escaped_too() -> None:
    said = done([HOSTILE], terminal=False)
    assert "no such command" in said
    assert foreign(said) == []


@pytest.mark.parametrize("words", [[*name.split(), *every[0]] for name, every in COMMANDS.items()])
def test_a_reader_that_has_gone_ends_every_command_quietly(words: list[str], words_of: Callable) -> None:
    said: list[str] = []
    arguments = words_of(words)
    far, near = os.pipe()
    os.close(far)
    with (
        pytest.MonkeyPatch.context() as patch,
        open(near, "w") as gone,
        streams(patch, terminal=False, said=said),
    ):
        patch.setattr(sys, "argv", ["localdpo", *arguments])
        patch.setattr(sys, "stdout", gone)
        with pytest.raises(SystemExit) as ended:
            run()
    assert "Traceback" not in said[0]
    assert "Error" not in said[0]
    assert ended.value.code == (2 if "error: " in said[0] else UNREAD_EXIT)


def test_the_whole_command_in_a_pipe_that_nobody_reads() -> None:
    localdpo = f"{sys.executable} -m localdpo"
    command = f"{localdpo} --help | true; {localdpo} doctor --json | head -c 3"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert (ended.stdout, ended.stderr) == ("[\n ", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
@pytest.mark.every(2)
def test_what_an_encoding_lacks_is_escaped(encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for words in (["ctl", "x", "日本\udc9b"], ["--日本\x9b"]):
        ended = subprocess.run(
            [sys.executable, "-m", "localdpo", *words], capture_output=True, env=environment, timeout=60
        )
        assert ended.returncode == 2
        assert b"\\u65e5\\u672c" in ended.stderr
        assert not set(ended.stderr) - set(range(32, 127)) - {10}


def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "localdpo", "--version"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    said = "error: the output cannot be written: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (2, said)
