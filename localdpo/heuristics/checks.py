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

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from localdpo.core.errors import UserError, UserErrors
from localdpo.data.prompts import PromptRow
from localdpo.heuristics.kinds import GENERAL, HEURISTICS, STANDARD, Heuristic
from localdpo.incidents import incident_facts
from localdpo.recipe.strict_yaml import YamlFile


def load_checks(path: str | Path) -> list[Heuristic]:
    """The heuristics of a file, in its order.

    Raises UserError(s) with file, line and key for whatever is wrong, all at once.
    """
    file = YamlFile(Path(path).expanduser())
    checks = [] if file.problems else _read(file)
    file.raise_problems()
    return checks


def with_standard(checks: Sequence[Heuristic], rows: Iterable[Mapping[str, Any]] = ()) -> list[Heuristic]:
    """The standard heuristics and then `checks`, which replace those of the same name.

    The demo's are among them only if one of the `rows` (the columns beside the prompts) is an incident's.
    """
    replaced = {check.name for check in checks}
    standard = STANDARD if any(incident_facts(row) for row in rows) else GENERAL
    return [*(heuristic for heuristic in standard if heuristic.name not in replaced), *checks]


def check_rows(checks: Sequence[Heuristic], rows: Iterable[PromptRow]) -> None:
    """Raise UserErrors for every row of prompts whose other columns a check cannot read."""
    errors: dict[str, UserError] = {}
    for row in rows:
        for check in checks:
            try:
                check.score(row.text, "", row.facts)
            except ValueError as error:
                line = f"{row.place} {error}"
                errors.setdefault(line, UserError(line))
    if errors:
        raise UserErrors(list(errors.values()))


def _read(file: YamlFile) -> list[Heuristic]:
    """The heuristics of a file; what is wrong with others is noted."""
    kinds = ", ".join(HEURISTICS)
    value = file.value
    if not isinstance(value, dict) or not isinstance(value.get("checks"), list) or not value["checks"]:
        file.note(("checks",), f"expected a list of checks, each with a kind: {kinds}")
        return []
    for name in value:
        if name != "checks":
            file.note((name,), "unknown key; a file of checks has only `checks`")
    checks: dict[str, Heuristic] = {}
    for index, entry in enumerate(value["checks"]):
        if not isinstance(entry, dict):
            file.note(("checks", index), f"expected a mapping with a kind: {kinds}")
            continue
        kind = str(entry.get("kind"))
        options = {"name": kind, **{name: option for name, option in entry.items() if name != "kind"}}
        if kind not in HEURISTICS:
            file.note(("checks", index, "kind"), f"no such kind; the kinds are {kinds}")
            continue
        try:
            check = HEURISTICS[kind](**options)
        except ValidationError as error:
            file.note_invalid(error, ("checks", index))
            continue
        except ValueError as error:  # options that do not go together
            file.note(("checks", index), str(error))
            continue
        if check.name in checks:
            message = f"there is a check named {check.name!r} already; give another name"
            file.note(("checks", index, "name"), message)
        checks[check.name] = check
    return list(checks.values())
