"""A file of checks: which heuristics to use besides the standard ones.

    checks:
      - kind: regex
        name: has a number
        pattern: '[0-9]+'
        whole: false
      - kind: label
        column: answer
        pattern: 'Answer: (\\w+)'

`name` is the row's name in the table (default: the kind); a check with the name of a standard one takes its
place.
Paths in it are relative to the folder you are in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from localdpo.core.errors import UserError, UserErrors
from localdpo.heuristics import GENERAL, HEURISTICS, STANDARD
from localdpo.heuristics.base import Heuristic, OptionProblem, Options
from localdpo.heuristics.incident import incident_facts
from localdpo.recipe import strict_yaml


def load_checks(file: str | Path) -> list[Heuristic]:
    """The heuristics of a file, in its order.

    Raises UserError(s) with file, line and key for whatever is wrong, all at once.
    """
    try:
        text = Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error})") from error
    document = strict_yaml.read_yaml(text)
    problems = list(document.problems)
    found = [] if problems else _read(document, problems)
    if problems:
        raise UserErrors([UserError(f"{file}:{p.line} {_key(p.path)}{p.message}") for p in problems])
    return found


def with_standard(checks: Sequence[Heuristic], rows: Iterable[Mapping[str, Any]] = ()) -> list[Heuristic]:
    """The standard heuristics and then `checks`, which replace those of the same name.

    The demo's are among them only if one of the `rows` (the columns beside the prompts) is an incident's.
    """
    own = {check.name for check in checks}
    standard = STANDARD if any(incident_facts(row) for row in rows) else GENERAL
    return [*(heuristic for heuristic in standard if heuristic.name not in own), *checks]


def _read(document: strict_yaml.Document, problems: list[strict_yaml.YamlProblem]) -> list[Heuristic]:
    def problem(path: strict_yaml.Path, message: str) -> None:
        near = next((path[:n] for n in range(len(path), 0, -1) if path[:n] in document.lines), ())
        problems.append(strict_yaml.YamlProblem(document.lines.get(near, 1), path, message))

    value = document.value
    if not isinstance(value, dict) or not isinstance(value.get("checks"), list) or not value["checks"]:
        problem(("checks",), f"expected a list of checks, each with a kind: {_kinds()}")
        return []
    for name in value:
        if name != "checks":
            problem((name,), "unknown key; a file of checks has only `checks`")
    found: list[Heuristic] = []
    taken: set[str] = set()
    for place, check in enumerate(value["checks"]):
        path: strict_yaml.Path = ("checks", place)
        try:
            made = _check(check, taken)
        except OptionProblem as wrong:
            problem((*path, *wrong.path), wrong.message)
            continue
        taken.add(made.name)
        found.append(made)
    return found


def _check(check: Any, taken: Collection[str]) -> Heuristic:
    if not isinstance(check, dict):
        raise OptionProblem((), f"expected a mapping with a kind: {_kinds()}")
    options = Options(check)
    kind = HEURISTICS.get(options.text("kind"))
    if kind is None:
        raise OptionProblem(("kind",), f"no such kind; the kinds are {_kinds()}")
    name = options.text("name", kind.name)
    if name in taken:
        raise OptionProblem(("name",), f"there is a check named {name!r} already; give another name")
    made = kind.build(name, options)
    options.finish()
    return made


def _kinds() -> str:
    return ", ".join(HEURISTICS)


def _key(path: strict_yaml.Path) -> str:
    key = ""
    for part in path:
        key += f"[{part}]" if isinstance(part, int) else f"{'.' if key else ''}{part}"
    return f"{key}: " if key else ""
