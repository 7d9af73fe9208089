"""YAML with line numbers: a strict subset, read from PyYAML's events into plain Python values.

Not supported on purpose: tags, anchors and aliases (they can build objects or blow up), duplicate keys (the
last one would win silently), deep nesting, several documents. Plain scalars follow YAML 1.2's core schema and
not 1.1, so `1e-5` is a number and `no`, `on`, `12:30`, `1_000`, `010` are text.

Recipes are read by `load`; `YamlFile` and `load_yaml` take small YAML files of other kinds as values of a
declared type. Every mistake is reported by file, line and key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from localdpo.core.errors import UserError, UserErrors

KeyPath = tuple[str | int, ...]
"""Keys, and indices from 0 in lists: `data.train[1].weight` is ("data", "train", 1, "weight")."""
MAX_DEPTH: Final = 8
MAX_NODES: Final = 2000
# Whole numbers with more digits are read as floats: nothing in a recipe needs them, and int() of a long
# text is slow.
MAX_DIGITS: Final = 18
WHOLE: Final = re.compile(r"[-+]?(0|[1-9][0-9]*)\Z")
NUMBER: Final = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
# Tabs, byte order marks, tags and marks of blocks, of which libyaml takes more than the Python parser.
LENIENT: Final = re.compile("[\t\ufeff!]|[|>]#")
CONSTANTS: Final = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), float("nan")),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), float("inf")),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), float("-inf")),
}


@dataclass(frozen=True)
class YamlProblem:
    """Something wrong at a line (1-based); `path` is the key it belongs to, empty for the file as such."""

    line: int
    path: KeyPath
    message: str


@dataclass
class Document:
    """A YAML text as plain values, with the line of every key and list item."""

    value: object = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[YamlProblem] = field(default_factory=list)


class _SyntaxProblem(Exception):
    """The text cannot be read any further."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.problem = YamlProblem(line, (), message)


def read_yaml(text: str) -> Document:
    """Reads `text`; what is wrong with it is listed in `problems`, and nothing is raised for bad input.

    After a problem with one value its key is skipped and reading continues; after a syntax error the value
    is None.
    """
    document = Document()
    try:
        document.value = _Reader(text, document).read()
    except _SyntaxProblem as error:
        document.value = None
        document.problems.append(error.problem)
    return document


def scalar(text: str) -> object:
    """The value of a plain (unquoted) scalar: None, a bool, an int, a float or the text itself."""
    if text in CONSTANTS:
        return CONSTANTS[text]
    if WHOLE.match(text) and len(text) <= MAX_DIGITS:
        return int(text)
    # A leading zero marks an octal number in YAML 1.1 and a code such as 007 in life: neither is meant.
    if NUMBER.match(text) and (not text.lstrip("+-").isdigit() or WHOLE.match(text)):
        return float(text)
    return text


class _Reader:
    def __init__(self, text: str, document: Document) -> None:
        self.document = document
        self.events = _events(text)
        self.nodes = 0

    def read(self) -> object:
        next(self.events)  # start of the stream
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return None
        value = self.node(next(self.events), ())
        next(self.events)  # end of the document
        after = next(self.events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise _SyntaxProblem(_line(after), "a second document starts here; a recipe is one document")
        return value

    def node(self, event: yaml.Event, path: KeyPath) -> object:
        self.count(event, len(path))
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            self.problem(event, path, "anchors and aliases are not allowed; write the value out")
        elif getattr(event, "tag", None) is not None:
            self.problem(event, path, "tags are not allowed; write the value without one")
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(path)
        if isinstance(event, yaml.ScalarEvent):
            return event.value if event.style else scalar(event.value)
        return None

    def mapping(self, path: KeyPath) -> dict[str, object]:
        values: dict[str, object] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            if isinstance(event, yaml.ScalarEvent) and event.tag is None and event.anchor is None:
                self.entry(event, path, values)
            else:
                self.problem(event, path, "a key has to be a plain word")
                self.skip(event)
                self.skip(next(self.events))
        return values

    def entry(self, key: yaml.ScalarEvent, path: KeyPath, values: dict[str, object]) -> None:
        here = (*path, key.value)
        first = self.document.lines.get(here)
        if first is not None:
            self.problem(key, here, f"given twice, first on line {first}; remove one")
            self.skip(next(self.events))
            return
        self.document.lines[here] = _line(key)
        values[key.value] = self.node(next(self.events), here)

    def sequence(self, path: KeyPath) -> list[object]:
        values: list[object] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            here = (*path, len(values))
            self.document.lines[here] = _line(event)
            values.append(self.node(event, here))
        return values

    def skip(self, event: yaml.Event) -> None:
        """Skip a value that needs no further message."""
        depth = 0
        while True:
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            self.count(event, depth)
            if depth == 0:
                return
            event = next(self.events)

    def count(self, event: yaml.Event, depth: int) -> None:
        self.nodes += 1
        if depth > MAX_DEPTH:
            raise _SyntaxProblem(_line(event), f"nested more than {MAX_DEPTH} deep; a recipe never is")
        if self.nodes > MAX_NODES:
            raise _SyntaxProblem(_line(event), f"more than {MAX_NODES} values; a recipe has fewer")

    def problem(self, event: yaml.Event, path: KeyPath, message: str) -> None:
        self.document.problems.append(YamlProblem(_line(event), path, message))


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _events(text: str) -> Iterator[yaml.Event]:
    """PyYAML's events: by libyaml, which is many times faster, where it takes the whole text.

    Otherwise by the pure Python parser, so that messages do not depend on how PyYAML was built.
    """
    try:
        yield from _fast_events(text) or yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        line, code = text.count("\n", 0, error.position) + 1, ord(text[error.position])
        raise _SyntaxProblem(line, f"the character U+{code:04X} is not allowed") from None
    except yaml.MarkedYAMLError as error:
        raise _syntax_problem(error) from None
    except (ValueError, OverflowError):
        # PyYAML passes \UFFFFFFFF on to chr() and version digits on to int().
        raise _SyntaxProblem(1, "not valid YAML: too large a number in an escape or %YAML line") from None


def _fast_events(text: str) -> list[yaml.Event]:
    """Every event of the text; none without libyaml, or where it finds mistakes, too much, or is lenient."""
    if not yaml.__with_libyaml__ or LENIENT.search(text):
        return []
    try:
        events = list(islice(yaml.parse(text, Loader=yaml.CSafeLoader), 2 * MAX_NODES))
    except (yaml.YAMLError, ValueError, OverflowError):
        return []
    return events if isinstance(events[-1], yaml.StreamEndEvent) else []


def _syntax_problem(error: yaml.MarkedYAMLError) -> _SyntaxProblem:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    if "'\\t'" in (error.problem or ""):
        return _SyntaxProblem(line, "a tab where YAML expects spaces; replace it with spaces")
    return _SyntaxProblem(line, f"not valid YAML: {', '.join(filter(None, (error.context, error.problem)))}")


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
