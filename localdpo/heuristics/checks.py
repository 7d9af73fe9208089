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

import inspect
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from localdpo.core.errors import UserError, UserErrors
from localdpo.heuristics.kinds import GENERAL, HEURISTICS, STANDARD, Heuristic
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
        at: strict_yaml.KeyPath = ("checks", index)
        if not isinstance(entry, dict):
            problem(at, f"expected a mapping with a kind: {', '.join(HEURISTICS)}")
            continue
        kind = str(entry.get("kind"))
        if kind not in HEURISTICS:
            problem((*at, "kind"), f"no such kind; the kinds are {', '.join(HEURISTICS)}")
            continue
        options = {"name": kind, **entry}
        del options["kind"]
        if options["name"] in [check.name for check in checks]:
            problem((*at, "name"), f"there is a check named {options['name']!r} already; give another name")
            continue
        try:
            checks.append(HEURISTICS[kind](**options))
        except ValidationError as error:
            for item in error.errors():
                problem((*at, *item["loc"]), _message(item, kind))
        except ValueError as error:  # options that do not go together
            problem(at, str(error))
    return checks


def _message(item: Any, kind: str) -> str:
    """What pydantic says about an option, in words."""
    match item["type"]:
        case "missing_argument":
            return "missing"
        case "unexpected_keyword_argument":
            known = sorted(["kind", *inspect.signature(HEURISTICS[kind]).parameters])
            return f"no such option of this kind; it has {', '.join(known)}"
        case "value_error":
            return str(item["ctx"]["error"])
    return f"{item['msg'].replace('Input should be', 'expected')}, got {item['input']!r}"


def _key(path: strict_yaml.KeyPath) -> str:
    key = ""
    for part in path:
        key += f"[{part}]" if isinstance(part, int) else f"{'.' if key else ''}{part}"
    return f"{key}: " if key else ""
