"""`demo:` names, the cache folder, and what this program is called.

A name such as `demo:model` works wherever a path or a hub name does. It stands for what lies under
`localdpo/demo/bundle` with that relative name: a folder, or a file with one of DEMO_SUFFIXES.
"""

from __future__ import annotations

import difflib
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

from localdpo.core.errors import UserError

PREFIX: Final = "demo:"
DEMO_SUFFIXES: Final = (".jsonl", ".json", ".parquet")
DEMO_NAMES: Final = (
    "demo:model",
    "demo:sft",
    "demo:demonstrations/train",
    "demo:demonstrations/valid",
    "demo:preferences/train",
    "demo:preferences/valid",
    "demo:prompts/heldout",
)
# The environment variable in which the processes of a command find how it was called.
PROGRAM_SWITCH: Final = "LOCALDPO_PROGRAM"
BUNDLE: Final = Path(__file__).resolve().parent.parent / "demo" / "bundle"


def is_demo(name: str) -> bool:
    """Whether `name` is a `demo:` name (known or not)."""
    return name.startswith(PREFIX)


def resolve(name: str, bundle: Path = BUNDLE) -> Path:
    """The file or folder that `name` stands for.

    A name without the `demo:` prefix is a path: `~` is expanded and nothing is checked.
    Raises UserError for an unknown `demo:` name and for a known one whose file is not there.
    """
    if not is_demo(name):
        return Path(name).expanduser()
    relative = Path(name.removeprefix(PREFIX))
    if not relative.parts or relative.is_absolute() or ".." in relative.parts:
        raise unknown_demo_name(name)
    for suffix in ("", *DEMO_SUFFIXES):
        path = bundle / f"{relative}{suffix}"
        if path.is_file() or (path.is_dir() and name in DEMO_NAMES):
            return path
    if name in DEMO_NAMES:
        where = bundle / relative
        raise UserError(f"{name}: {where} is missing; install localdpo again")
    raise unknown_demo_name(name)


def unknown_demo_name(name: str) -> UserError:
    """The error for a `demo:` name that does not exist, with the nearest one that does."""
    nearest = difflib.get_close_matches(name, DEMO_NAMES, n=1)
    hint = f"did you mean {nearest[0]}?" if nearest else f"the names are {', '.join(DEMO_NAMES)}"
    return UserError(f"{name}: no such demo name; {hint}")


def cache_dir() -> Path:
    """The folder for token stores and reference scores; it need not exist.

    LOCALDPO_CACHE, else $XDG_CACHE_HOME/localdpo, else ~/.cache/localdpo. The XDG rules ignore a
    relative XDG_CACHE_HOME.
    """
    if own := os.environ.get("LOCALDPO_CACHE"):
        return Path(own).expanduser()
    xdg = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (xdg if xdg.is_absolute() else Path.home() / ".cache") / "localdpo"


def program() -> str:
    """What a printed command begins with, so that it runs where it is read: as this one was called."""
    return os.environ.get(PROGRAM_SWITCH) or "localdpo"


def command_line(*words: str) -> str:
    """The command of this program with these words, ready for a shell."""
    return f"{program()} {shlex.join(words)}"


def remember_program() -> None:
    """Keep how this process was called, for `program` here and in every process that it starts.

    A process that another command of localdpo started speaks as that one was called.
    """
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        words = sys.orig_argv[: sys.orig_argv.index("-m") + 2]
    else:
        # A shell names the file that it finds on the PATH by its whole path.
        on_path = shutil.which("localdpo")
        is_on_path = on_path is not None and called.is_absolute() and Path(on_path) == called
        words = ["localdpo" if is_on_path else str(called)]
    os.environ.setdefault(PROGRAM_SWITCH, shlex.join(words))
