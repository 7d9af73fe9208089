"""From a YAML file and `KEY=VALUE` overrides to a Recipe, its links followed, and back to YAML.

All problems are reported at once, in one line each:

    recipes/dpo.yaml:14 loss.beta: expected a number > 0, got "0,1"
    recipes/dpo.yaml:9 train.learning_rte: unknown key; did you mean learning_rate?
    loss.beta=abc: expected a number > 0, got "abc"

Paths in a recipe (model, adapter, data) are relative to the current directory, as in mlx-lm.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ValidationError

from localdpo.core.errors import UserError, UserErrors
from localdpo.core.names import command_line, is_demo
from localdpo.recipe import strict_yaml
from localdpo.recipe.arguments import checked
from localdpo.recipe.describe import (
    ENTRIES,
    entry_fields,
    expected,
    field_at,
    fields_of,
    section_of,
    unknown_key,
)
from localdpo.recipe.elsewhere import PROGRAMS, written_for
from localdpo.recipe.loss import SYNC_OPTIONS
from localdpo.recipe.schema import (
    ACROSS_SECTIONS,
    AS_LIST,
    SHORTHANDS,
    Recipe,
    RoundsSection,
    expand_shorthands,
)
from localdpo.recipe.strict_yaml import KeyPath, key_text
from localdpo.records.checkpoints import LATEST, checkpoint_folders, verified_adapter

MAX_BYTES: Final = 256 * 1024
LONGEST_QUOTE: Final = 80
# Options whose path may be a link, and as many links as Linux follows in one path.
LINKED: Final = ("model", "adapter", "reference_adapter")
_MOST_LINKS: Final = 40
# Follows from another problem and says nothing of its own.
ECHOES: Final = frozenset({"default_factory_not_called"})


@checked
def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in the YAML file `path`, with `KEY=VALUE` overrides on top; the last one of a key wins.

    Raises UserError if the file cannot be read, else UserErrors with every problem of the file, by line,
    and then of the overrides, in their order.
    """
    name = _printable(os.fspath(path))
    return parse_recipe(_read_text(path, name), name, overrides)


def parse_recipe(text: str, name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The same of the text of a file; `name` is the file's, for errors."""
    problems = _Problems(name)
    file = _read_values(text, problems)
    if file is not None and not any(section_of(name) for name in file) and (other := written_for(file)):
        raise UserError(
            f"{problems.name}: looks like a config of {PROGRAMS[other].title}, not like a recipe; "
            f"`{command_line('init', 'NAME', '--from', other, problems.name)}` makes one of it"
        )
    values = {} if file is None else file
    for number, override in enumerate(overrides, start=1):
        _override(values, override, number, problems)
    recipe = None
    if file is not None:
        try:
            recipe = Recipe.model_validate(values)
        except ValidationError as error:
            problems.note_invalid(error)
    if recipe is None or problems.noted:
        raise UserErrors(problems.errors())
    return recipe


def dump_recipe(recipe: Recipe, rename: Callable[[str], str] = str) -> str:
    """`recipe` as YAML with every default written out; loading it returns an equal recipe.

    `rename` is applied to every text, for a recipe that others read: names of files may be shortened.

    Options that the loss does not read are omitted (they cannot be set), and so are the weight of a single
    loss, the sync of a reference that stays, a reference that is the start, a held-out share that is not
    used, and rounds of which nothing is set.
    """
    values = _renamed(recipe.model_dump(mode="json"), rename)
    weights = {} if recipe.loss.weights is None else {"weights": values["loss"]["weights"]}
    sync = {} if recipe.loss.sync_every is None else {name: values["loss"][name] for name in SYNC_OPTIONS}
    values["loss"] = {"type": values["loss"]["type"], **weights, **recipe.loss.options, **sync}
    if recipe.data.valid is not None:
        del values["data"]["valid_fraction"]
    if recipe.reference_adapter is None:
        del values["reference_adapter"]
    if recipe.rounds == RoundsSection():
        del values["rounds"]
    return yaml_text(values)


def yaml_text(values: dict[str, Any]) -> str:
    """Sections of options as YAML that reads back as they are."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=4096)


def problems_of(values: dict[str, Any]) -> list[tuple[str, str]]:
    """(key, message) of everything that is wrong with sections of options; empty for a recipe."""
    try:
        Recipe.model_validate(values)
    except ValidationError as error:
        items = [item for item in error.errors(include_url=False) if item["type"] not in ECHOES]
        return [(key_text(path), _message(item, path)) for item in items for path in [_key_path(item)]]
    return []


def _renamed(value: Any, rename: Callable[[str], str]) -> Any:
    """The value with its texts renamed; keys of objects stay."""
    if isinstance(value, dict):
        return {key: _renamed(inner, rename) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner, rename) for inner in value]
    return rename(value) if isinstance(value, str) else value


class _Problems:
    """What is wrong with one file and its overrides, and where each value came from."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[KeyPath, int] = {}
        # By key: the override's number, and its text.
        self.overrides: dict[KeyPath, tuple[int, str]] = {}
        # What to sort by (0 and the line, or 1 and the override's number), the key, the message.
        self.noted: list[tuple[tuple[int, int], KeyPath, str]] = []

    def note(self, path: KeyPath, message: str, line: int | None = None) -> None:
        """A problem of the file; without a line, at the nearest one that the file has for the key."""
        if line is None:
            above = [path[:end] for end in range(len(path), 0, -1)]
            line = next((self.lines[key] for key in above if key in self.lines), 1)
        key = _short(key_text(path))
        self.noted.append(((0, line), path, f"{self.name}:{line}{' ' + key if key else ''}: {message}"))

    def note_override(self, number: int, text: str, message: str, path: KeyPath = ()) -> None:
        self.noted.append(((1, number), path, f"{text}: {message}"))

    def note_invalid(self, error: ValidationError) -> None:
        """What pydantic found: once per key, and not what follows from a problem noted before."""
        known = [path for _, path, _ in self.noted if path]
        for item in error.errors(include_url=False):
            path = _key_path(item)
            # A list that loses its bad entries is then too short.
            echo = item["type"] == "too_short" and any(key[: len(path)] == path for key in known)
            if echo or item["type"] in ECHOES or any(path[: len(key)] == key for key in known):
                continue
            known.append(path)
            if path[:2] in self.overrides:
                number, text = self.overrides[path[:2]]
                inside = f" {key_text(path)}" if path[2:] else ""
                self.note_override(number, f"{_short(text)}{inside}", _message(item, path), path)
            else:
                self.note(path, _message(item, path))

    def errors(self) -> list[UserError]:
        """The file's problems by line, then the overrides' in their order."""
        ordered = sorted(self.noted, key=lambda item: item[0])
        return [UserError(_printable(message)) for _, _, message in ordered]


def _read_values(text: str, problems: _Problems) -> dict[str, Any] | None:
    """The values of the file, shorthands expanded; None where it holds none.

    What is not a section where one is due is noted and dropped.
    """
    document = strict_yaml.read_yaml(text)
    problems.lines = document.lines
    for problem in document.problems:
        problems.note(problem.path, problem.message, problem.line)
    if not isinstance(document.value, dict):
        if not document.problems:
            got = "nothing" if document.value is None else quoted(document.value)
            problems.note((), f"expected sections such as `model:` and `data:`, got {got}", 1)
        return None
    values = expand_shorthands(document.value)
    for name in [name for name in values if section_of(name) and not isinstance(values[name], dict)]:
        # A section whose options are all commented out is null, and means the defaults.
        if values.pop(name) is not None:
            problems.note((name,), f"expected options below it, such as `{next(iter(fields_of(name)))}:`")
    return values


def _override(values: dict[str, Any], text: str, number: int, problems: _Problems) -> None:
    """Puts one `KEY=VALUE` into `values`."""

    def refuse(message: str) -> None:
        problems.note_override(number, _short(text), message)

    key, equals, value = text.partition("=")
    key = f"{key}.{SHORTHANDS[key]}" if key in SHORTHANDS else key
    section, _, name = key.rpartition(".")
    if not equals:
        return refuse("expected KEY=VALUE, e.g. loss.beta=0.2")
    if section_of(key):
        first = next(iter(fields_of(key)))
        return refuse(f"{key} is a section; set one of its keys, e.g. {key}.{first}=...")
    if field_at(key) is None:
        return refuse(unknown_key(section, name, dotted=True))
    # Only lists and quoted text need YAML; anything else is taken as it is, `#` and `: ` included.
    is_yaml = value.startswith(("[", "{", '"', "'"))
    document = strict_yaml.read_yaml(value) if is_yaml else strict_yaml.Document(strict_yaml.scalar(value))
    if document.problems:
        return refuse(document.problems[0].message)
    path = tuple(key.split("."))
    problems.overrides[path] = (number, text)
    (values.setdefault(section, {}) if section else values)[name] = document.value
    # The file's own mistakes at this key, and in a list below it, no longer matter.
    problems.noted = [item for item in problems.noted if item[1][: len(path)] != path]


def _read_text(path: str | os.PathLike[str], name: str) -> str:
    try:
        with Path(path).open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UserError(
            f"{name}: no such recipe; `{command_line('init')}` lists some to start from"
        ) from None
    except IsADirectoryError:
        raise UserError(f"{name}: is a folder; name the YAML file in it") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: cannot be read ({reason})") from None
    if len(raw) > MAX_BYTES:
        raise UserError(f"{name}: is larger than {MAX_BYTES // 1024} KB; this is not a recipe")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        byte = f"byte 0x{raw[error.start]:02x}"
        raise UserError(f"{name}:{line}: {byte} is not UTF-8; save the file as UTF-8") from None


def _key_path(item: Any) -> KeyPath:
    """pydantic's location without the union branches that it puts behind a key."""
    location: KeyPath = item["loc"]
    if item["type"] == ACROSS_SECTIONS:
        context = item["ctx"]
        return context["path"] if "path" in context else (*location, context["key"])
    length = 2 if section_of(str(location[0])) else 1
    if ".".join(map(str, location[:2])) in ENTRIES and location[2:3] == (AS_LIST,):
        # After the branch: the index of the entry, and its option.
        return (*location[:2], *location[3:5])
    return location[:length]


def _message(item: Any, path: KeyPath) -> str:
    if item["type"] == "extra_forbidden":
        return unknown_key(key_text(path[:-1]), str(path[-1]), dotted=False)
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    if item["type"] == ACROSS_SECTIONS:
        return str(item["msg"])
    if isinstance(path[-1], int):
        return f"expected text, or options such as `source:`, got {quoted(item['input'])}"
    key = ".".join(map(str, path[:2]))
    # Longer paths lead to an option of an entry of a list.
    field = entry_fields(key).get(str(path[-1])) if len(path) > 2 else field_at(key)
    assert field is not None
    if item["type"] == "missing":
        return f"missing; expected {expected(field)}: {field.description}"
    wanted, got = expected(field), item["input"]
    quotes = "; put it in quotes" if wanted.startswith("text") and isinstance(got, bool | int | float) else ""
    return f"expected {wanted}, got {quoted(got)}{quotes}"


def quoted(value: object) -> str:
    """A value as JSON in one line, shortened."""
    return _short(json.dumps(value, ensure_ascii=False))


def _short(text: str) -> str:
    text = _printable(text)
    return text if len(text) <= LONGEST_QUOTE else f"{text[: LONGEST_QUOTE - 3]}..."


def _printable(text: str) -> str:
    """`text` fit for one line of a terminal: control characters and lone surrogates escaped."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class _Dumper(yaml.SafeDumper):
    """Quotes text that `scalar` would read as something else; PyYAML knows only YAML 1.1's rules."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    plain = isinstance(strict_yaml.scalar(text), str)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "'")


_Dumper.add_representer(str, _represent_text)


# --- symbolic links --------------------------------------------------------------------------------------


def follow_links(recipe: Recipe, kept: Recipe | None = None) -> tuple[Recipe, list[str]]:
    """The recipe with the links in `model` and `adapter` followed; other paths stay as they were written.

    `adapter: runs/sft/checkpoints/LATEST` becomes `runs/sft/checkpoints/step-000120` in the run's recipe. Its
    reference is that checkpoint for good, whatever the other run saves later.

    `kept` is the recipe of the run that is resumed: where a link led to a neighbour of what it leads to now
    (as LATEST does), the run keeps what it has, and a line says so.

    Raises UserError for the LATEST of a run without a complete checkpoint.
    """
    changed: dict[str, str] = {}
    lines: list[str] = []
    for option in LINKED:
        name = getattr(recipe, option)
        was = None if kept is None else getattr(kept, option)
        if name is None or is_demo(name) or name == was:
            continue
        path = Path(name).expanduser()
        folder = Path(followed(str(path.parent)))
        if path.name == LATEST and checkpoint_folders(folder):
            # The newest complete checkpoint of a run.
            target = str(verified_adapter(folder / LATEST, (), lines.append).path)
        else:
            target = followed(name)
        if target != name and was is not None and was != target and Path(was).parent == Path(target).parent:
            lines.append(f"{option} {name} leads to {target} now; this run keeps {was}")
            target = was
        changed[option] = target
    return recipe.model_copy(update=changed), lines


def followed(name: str) -> str:
    """The path `name` without links; as it is where there are none. What does not exist stays as it is.

    Links in the root folder are the system's own (/tmp on macOS) and are left alone.
    """
    path = Path(name).expanduser()
    resolved, rest, links = Path(path.anchor), [*path.relative_to(path.anchor).parts], 0
    while rest:
        step = resolved / rest.pop(0)
        if resolved != Path("/") and step.is_symlink() and links < _MOST_LINKS:
            links += 1
            target = Path(os.readlink(step))
            resolved = Path(target.anchor) if target.is_absolute() else resolved
            rest = [*target.relative_to(target.anchor).parts, *rest]
        else:
            resolved = step
    # No link is left, so that `x/..` can go.
    return os.path.normpath(resolved) if links else name
