"""Small YAML files other than recipes, as values of a declared type; every mistake by file, line and key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final, TypeVar

from pydantic import BaseModel, ValidationError

from localdpo.core.errors import UserError, UserErrors
from localdpo.recipe.strict_yaml import KeyPath, YamlProblem, read_yaml

M = TypeVar("M", bound=BaseModel)
_MAX_BYTES: Final = 256 * 1024
# pydantic's words for these would be about Python.
_MESSAGES: Final = {
    **dict.fromkeys(("missing", "missing_argument"), "missing"),
    **dict.fromkeys(("extra_forbidden", "unexpected_keyword_argument"), "unknown key"),
    **dict.fromkeys(("model_type", "dict_type"), "expected a mapping"),
    **dict.fromkeys(("tuple_type", "list_type"), "expected a list"),
}


class YamlFile:
    """A YAML file that is being checked: its `value`, and what was noted to be wrong with it.

    Raises UserError when it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        document = read_yaml(read_text(path))
        self.value, self.lines, self.problems = document.value, document.lines, document.problems

    def note(self, path: KeyPath, message: str) -> None:
        """A problem with the value at a key."""
        above = (path[:end] for end in range(len(path), 0, -1))
        line = next((self.lines[key] for key in above if key in self.lines), 1)
        self.problems.append(YamlProblem(line, path, message))

    def note_invalid(self, error: ValidationError, at: KeyPath = ()) -> None:
        """What pydantic found wrong with the value at a key."""
        for path, message in problems_of(error):
            self.note((*at, *path), message)

    def raise_problems(self) -> None:
        """Raise UserErrors with all that was noted, if anything was."""
        if self.problems:
            keyed = ((p.line, key_text(p.path), p.message) for p in self.problems)
            lines = (f"{line} {key}{': ' if key else ''}{message}" for line, key, message in keyed)
            raise UserErrors([UserError(f"{self.path}:{line}") for line in lines])


def load_yaml(path: Path, kind: type[M]) -> M:
    """The content of a YAML file. Raises UserError(s) with everything that is wrong in it."""
    file = YamlFile(path)
    file.raise_problems()
    try:
        return kind.model_validate(file.value)
    except ValidationError as error:
        file.note_invalid(error)
        file.raise_problems()
        raise


def problems_of(error: ValidationError) -> Iterator[tuple[KeyPath, str]]:
    """What pydantic found wrong: the path to each value, and a message for people."""
    for item in error.errors(include_url=False):
        message = _MESSAGES.get(item["type"])
        if item["type"] == "value_error":
            message = str(item["ctx"]["error"])
        elif message is None:
            message = f"{item['msg'].replace('Input should be', 'expected')}, got {item['input']!r}"
        yield item["loc"], message


def key_text(path: KeyPath) -> str:
    """The path as it is written in messages: `data.train[1].weight`, indices from 0."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".")


def read_text(path: Path) -> str:
    """A small UTF-8 text file, its lines ended by \\n. Raises UserError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > _MAX_BYTES:
        raise UserError(f"{path}: {len(data):,} bytes, expected at most {_MAX_BYTES:,}")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
