"""A file of checks: which heuristics to use besides the standard ones.

    checks:
      - kind: regex
        name: has a number
        pattern: '[0-9]+'
        whole: false
      - kind: label
        column: answer
        pattern: 'Answer: (\\w+)'

`name` is the name of the row in the table (default: the kind); a check with the name of a standard one
replaces it. Paths in the file are relative to the current folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from localdpo.core.errors import UserError, UserErrors
from localdpo.heuristics.base import CheckOptions, Heuristic, OptionProblem
from localdpo.heuristics.kinds import GENERAL, HEURISTICS, STANDARD
from localdpo.incidents.rules import incident_facts
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
    checks = [] if problems else _read(document, problems)
    if problems:
        raise UserErrors([UserError(f"{file}:{p.line} {_key(p.path)}{p.message}") for p in problems])
    return checks


def with_standard(checks: Sequence[Heuristic], rows: Iterable[Mapping[str, Any]] = ()) -> list[Heuristic]:
    """The standard heuristics and then `checks`, which replace those of the same name.

    The demo's are among them only if one of the `rows` (the columns beside the prompts) is an incident's.
    """
    replaced = {check.name for check in checks}
    standard = STANDARD if any(incident_facts(row) for row in rows) else GENERAL
    return [*(heuristic for heuristic in standard if heuristic.name not in replaced), *checks]


def _read(document: strict_yaml.Document, problems: list[strict_yaml.YamlProblem]) -> list[Heuristic]:
    def problem(path: strict_yaml.KeyPath, message: str) -> None:
        near = next((path[:n] for n in range(len(path), 0, -1) if path[:n] in document.lines), ())
        problems.append(strict_yaml.YamlProblem(document.lines.get(near, 1), path, message))

    value = document.value
    if not isinstance(value, dict) or not isinstance(value.get("checks"), list) or not value["checks"]:
        problem(("checks",), f"expected a list of checks, each with a kind: {', '.join(HEURISTICS)}")
        return []
    for name in value:
        if name != "checks":
            problem((name,), "unknown key; a file of checks has only `checks`")
    checks: list[Heuristic] = []
    for index, entry in enumerate(value["checks"]):
        try:
            checks.append(_check(entry, [check.name for check in checks]))
        except OptionProblem as error:
            problem(("checks", index, *error.path), error.message)
    return checks


def _check(entry: Any, taken: Collection[str]) -> Heuristic:
    """The heuristic of one entry. `taken`: names of the checks before it. Raises OptionProblem."""
    if not isinstance(entry, dict):
        raise OptionProblem((), f"expected a mapping with a kind: {', '.join(HEURISTICS)}")
    options = CheckOptions(entry)
    kind = options.text("kind")
    if kind not in HEURISTICS:
        raise OptionProblem(("kind",), f"no such kind; the kinds are {', '.join(HEURISTICS)}")
    name = options.text("name", kind)
    if name in taken:
        raise OptionProblem(("name",), f"there is a check named {name!r} already; give another name")
    heuristic = HEURISTICS[kind](name, options)
    options.finish()
    return heuristic


def _key(path: strict_yaml.KeyPath) -> str:
    key = ""
    for part in path:
        key += f"[{part}]" if isinstance(part, int) else f"{'.' if key else ''}{part}"
    return f"{key}: " if key else ""
