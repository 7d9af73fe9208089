from __future__ import annotations

import sys
from pathlib import Path

import pytest

from localdpo.core import names
from localdpo.core.errors import UserError
from localdpo.core.names import cache_dir, resolve


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "preferences").mkdir()
    (tmp_path / "preferences" / "train.jsonl").write_text("{}\n")
    return tmp_path


def test_demo_names_are_what_lies_in_the_bundle(bundle: Path):
    assert resolve("demo:model", bundle) == bundle / "model"
    assert resolve("demo:preferences/train", bundle) == bundle / "preferences" / "train.jsonl"


def test_other_names_are_paths(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert resolve("~/models/x") == Path("/home/somebody/models/x")
    assert resolve("org/model") == Path("org/model")


def test_an_unknown_demo_name_gets_the_nearest(bundle: Path):
    with pytest.raises(UserError, match=r"demo:modle: no such demo name; did you mean demo:model\?"):
        resolve("demo:modle", bundle)
    with pytest.raises(UserError, match=r"the names are demo:model, "):
        resolve("demo:xyzzy", bundle)


def test_a_known_name_without_its_file_says_how_to_make_it(bundle: Path):
    with pytest.raises(UserError, match="install localdpo again"):
        resolve("demo:sft", bundle)


@pytest.mark.parametrize("name", ["demo:", "demo:/etc/passwd", "demo:../world.py", "demo:preferences"])
def test_a_demo_name_stays_in_the_bundle(name: str, bundle: Path):
    with pytest.raises(UserError, match="no such demo name"):
        resolve(name, bundle)


def test_the_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.delenv("LOCALDPO_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path("/h/.cache/localdpo")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path("/h/.cache/localdpo")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/localdpo")
    monkeypatch.setenv("LOCALDPO_CACHE", "~/own")
    assert cache_dir() == Path("/h/own")


@pytest.mark.parametrize(
    ("argv", "orig_argv", "expected"),
    [
        ("bin/localdpo", ["bin/python", "bin/localdpo", "runs"], "bin/localdpo"),
        ("{path}", ["bin/python", "{path}", "runs"], "localdpo"),
        ("/else/my env/localdpo", ["python", "/else/my env/localdpo"], "'/else/my env/localdpo'"),
        (
            "/a/localdpo/__main__.py",
            ["bin/python", "-X", "dev", "-m", "localdpo"],
            "bin/python -X dev -m localdpo",
        ),
    ],
)
def test_printed_commands_name_the_program_as_it_was_called(
    argv: str, orig_argv: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "localdpo"
    script.touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(names.PROGRAM_SWITCH)
    monkeypatch.setattr(sys, "argv", [argv.format(path=script), "runs"])
    monkeypatch.setattr(sys, "orig_argv", [word.format(path=script) for word in orig_argv])
    names.remember_program()
    assert names.command_line("chat", "my run") == f"{expected} chat 'my run'"
    # A process that this one starts was not called by a person.
    monkeypatch.setattr(sys, "argv", ["/a/localdpo/launch/supervise.py"])
    names.remember_program()
    assert names.program() == expected
