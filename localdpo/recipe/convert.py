"""A recipe from the file of another program: `init --from`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from localdpo.core.errors import UserError, UserErrors
from localdpo.recipe.describe import all_keys
from localdpo.recipe.elsewhere import Name, Program, Several, same
from localdpo.recipe.load import problems_of, quoted, yaml_text
from localdpo.recipe.strict_yaml import YamlFile

REQUIRED: Final = ("model", "data.train")
# With another value than theirs a recipe would train something else.
DECISIVE: Final = "loss.type"
# What means "not used" in their files.
_EXPONENT: Final = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
_OFF: Final[tuple[Any, ...]] = (None, False, 0, -1, "", "no", "none", [], {})


@dataclass
class Converted:
    """What became of a file.

    Attributes:
        values: options of the recipe by key.
        source: which of their names each came from; those of defaults too.
        changed: a line for each value that follows from theirs in a way worth a word.
        left: a line for each value that has no counterpart.
        off: names without a counterpart that are not in use there.
        unsaid: a line for each option of ours that a file should name, and does not.
        missing: the required options that the file says nothing of.
    """

    values: dict[str, Any] = field(default_factory=dict)
    source: dict[str, str] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    off: list[str] = field(default_factory=list)
    unsaid: list[str] = field(default_factory=list)

    @property
    def missing(self) -> list[str]:
        return [key for key in REQUIRED if key not in self.values]

    def text(self) -> str:
        """The recipe as YAML; what is missing is null."""
        return yaml_text(_nested(dict.fromkeys(self.missing) | self.values))

    def notes(self) -> Iterator[str]:
        """What a person has to know of it, in lines."""
        yield from self.changed
        yield from (f"no counterpart: {line}" for line in self.left)
        if self.off:
            yield f"not in use there, and without a counterpart: {', '.join(self.off)}"
        yield from self.unsaid
        if self.missing:
            yield f"to fill in: {', '.join(self.missing)}"


def convert(path: Path, program: Program) -> Converted:
    """The recipe that the file of `program` at `path` (YAML or JSON) comes to.

    Raises UserError(s) for a file that cannot be read, for one whose options contradict each other here, and
    for a training that is not here.
    """
    file = YamlFile(path)
    file.raise_problems()
    if not isinstance(file.value, Mapping):
        raise UserError(
            f"{path}: expected options of {program.title} by name, such as {program.names[0].theirs}"
        )
    given = dict(_flat(file.value, program))
    defaults = {name.theirs: name.default for name in reversed(program.names) if name.default is not None}
    config = defaults | {name: value for name, value in given.items() if value is not None}
    result = Converted(dict(program.base))
    for name in [*(name for name in defaults if name not in given), *given]:
        _take(path, name, config, program.find(name), result)
    _drop_refused(path, config, result)
    for name in given:
        entry = program.find(name)
        is_left = any(line.startswith(f"{name}: ") for line in result.left)
        if entry is None or is_left or given[name] is None:
            continue
        if entry.note and entry.key in result.values:
            ours = quoted(result.values[entry.key])
            result.changed.append(f"{name}: {quoted(given[name])} -> {entry.key}: {ours} ({entry.words})")
    result.unsaid += [f"{key}: {words}" for key, words in program.unsaid.items() if key not in result.values]
    return result


def _flat(values: Mapping[str, Any], program: Program, above: str = "") -> Iterator[tuple[str, Any]]:
    """Values by name; those below a name that the program's table has with dots one by one."""
    for key, value in values.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and any(entry.theirs.startswith(f"{name}.") for entry in program.names):
            yield from _flat(value, program, f"{name}.")
        else:
            # `5e-7` is text to readers of YAML 1.1, and in quotes to all; these programs make a number of it.
            yield name, float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _take(path: Path, name: str, config: Mapping[str, Any], entry: Name | None, result: Converted) -> None:
    value = config.get(name)
    if entry is not None and (value in entry.moot or (entry.key is not None and value is None)):
        return
    if entry is None or (entry.key is None and entry.convert is same):
        note = f" ({entry.words})" if entry is not None and entry.note else ""
        if value in _OFF:
            result.off.append(name)
        else:
            result.left.append(f"{name}: {quoted(value)}{note}")
        return
    try:
        taken = entry.convert(value, config)
    except ValueError as problem:
        _leave(path, entry.key, name, value, str(problem), result)
    except (TypeError, LookupError, AttributeError, ArithmeticError):
        _leave(path, entry.key, name, value, "not a value that this option has", result)
    else:
        for key, ours in (taken if isinstance(taken, Several) else {str(entry.key): taken}).items():
            result.values[key], result.source[key] = ours, name


def _leave(path: Path, key: str | None, name: str, value: Any, why: str, result: Converted) -> None:
    """Name a value that has no counterpart. Raises UserError where no recipe can be without it."""
    if key == DECISIVE:
        raise UserError(f"{path}: {name}: {quoted(value)} ({why}); no recipe is made of this file")
    result.left.append(f"{name}: {quoted(value)} ({why})")


def _drop_refused(path: Path, config: Mapping[str, Any], result: Converted) -> None:
    """Leave out and name what the recipe's reader refuses, until it takes the rest."""
    while problems := problems_of(_nested(dict.fromkeys(result.missing, "?") | result.values)):
        dropped = {_option(key): message for key, message in problems if _option(key) in result.values}
        if not dropped:
            raise UserErrors([UserError(f"{path}: {key}: {message}") for key, message in problems])
        for key, message in dropped.items():
            del result.values[key]
            name = result.source.get(key, key)
            _leave(path, key, name, config.get(name), f"{key}: {message}", result)


def _option(key: str) -> str:
    """The option that a key belongs to: `data.train` of `data.train[0].weight`."""
    return key.partition("[")[0]


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by dotted key as sections, in the order of the schema."""
    sections: dict[str, Any] = {}
    for key in all_keys():
        if key in values:
            section, _, name = key.rpartition(".")
            (sections.setdefault(section, {}) if section else sections)[name] = values[key]
    return sections
