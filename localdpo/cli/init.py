"""`localdpo init`: a recipe to start from, or one made from another program's file; `localdpo schema`."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from localdpo.cli.options import ForceOption, JsonOption
from localdpo.core.atomic import make_folder, write_text
from localdpo.core.errors import UserError, UserErrors
from localdpo.core.names import PREFIX, command_line
from localdpo.core.text import printable
from localdpo.out import result, say

# The recipes of the repository: a link there, files in a wheel.
STARTERS: Final = Path(__file__).resolve().parent.parent / "recipe" / "starters"
DEMO: Final = "demo"
# The line of a starter that says how to run it from the repository.
_COMMAND: Final = re.compile(r"^# .*localdpo (train|rounds) recipes/.*$", re.MULTILINE)


def init(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="A starter, demo for those that run offline, or the file that --from writes. "
            "Default: list the starters.",
        ),
    ] = None,
    folder: Annotated[Path, typer.Option("--dir", metavar="DIR", help="Folder to write to.")] = Path("."),
    source: Annotated[
        tuple[str, Path] | None,
        typer.Option("--from", metavar="trl|mlx-lm|axolotl FILE", help="Make it of this file, YAML or JSON."),
    ] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write a recipe to start from, or list the starters.

    With --from it is made of a file of TRL, mlx-lm or Axolotl, and what has no counterpart is named.
    """
    if source is not None:
        record, lines = from_program(*source, name, folder, force)
    elif name is None:
        record = {"starters": {path.stem: _about(path) for path in starters()}}
        lines = [f"{starter:28} {about}" for starter, about in record["starters"].items()]
        lines += [
            "",
            f"{command_line('init', 'NAME')} writes one of them, "
            f"{command_line('init', DEMO)} those that run offline",
        ]
    else:
        record, lines = write_starters(name, folder, force)
    result(record, lines, as_json=as_json)


def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from localdpo.recipe.describe import schema_text

    say(schema_text().rstrip("\n"))


def starters() -> list[Path]:
    """The recipes that are shipped."""
    return sorted(STARTERS.glob("*.yaml"), key=lambda path: path.stem)


def write_starters(name: str, folder: Path, force: bool) -> tuple[dict[str, Any], list[str]]:
    """Write the starter `name`, or all that use the demo's model: (record, lines). Raises UserError(s)."""
    known = {path.stem: path for path in starters()}
    if name not in (DEMO, *known) and Path(name).is_dir():
        raise UserError(f"init {name}: is a folder; expected `{command_line('init', 'NAME', '--dir', name)}`")
    if name != DEMO and name not in known:
        raise UserError(f"init {name}: no such starter; expected {DEMO} or one of {', '.join(known)}")
    texts = {path.name: path.read_text() for path in ([known[name]] if name in known else known.values())}
    if name == DEMO:
        texts = {file: text for file, text in texts.items() if f"model: {PREFIX}" in text}
    files = {folder / file: text for file, text in texts.items()}
    commands = dict[Path, list[str]]()
    for path, text in files.items():
        said = _COMMAND.search(text)
        assert said is not None, path
        commands[path] = [said[1], str(path)]
        files[path] = text.replace(said[0], _comment(f"localdpo {shlex.join(commands[path])}"))
    written = _write(files, folder, force)
    first = folder / "dpo.yaml" if name == DEMO else next(iter(files))
    then = command_line(*commands[first])
    return {"written": written}, [f"written: {', '.join(written)}", f"run it: {then}"]


def from_program(
    kind: str, file: Path, name: str | None, folder: Path, force: bool
) -> tuple[dict[str, Any], list[str]]:
    """Write the recipe that a program's file comes to: (record, lines), with what has no counterpart."""
    from localdpo.recipe.convert import convert
    from localdpo.recipe.describe import MODELINE
    from localdpo.recipe.elsewhere import PROGRAMS

    if kind not in PROGRAMS:
        raise UserError(f"--from {kind}: expected one of {', '.join(PROGRAMS)}, and its file")
    converted = convert(file, PROGRAMS[kind])
    path = folder / f"{(name or file.stem).removesuffix('.yaml')}.yaml"
    if path.exists() and path.samefile(file):
        raise UserError(f"{path}: is the file itself; give the recipe another NAME")
    notes = [printable(note) for note in converted.notes()]
    head = [f"localdpo {shlex.join(['train', str(path)])}", f"From {file.name} of {PROGRAMS[kind].title}."]
    comments = [MODELINE, *map(_comment, [*head, *notes])]
    written = _write({path: "\n".join(comments) + "\n" + converted.text()}, folder, force)
    record = {
        **{"written": written, "changed": converted.changed, "left": converted.left},
        **{"off": converted.off, "unsaid": converted.unsaid, "missing": converted.missing},
    }
    then = "fill in what is missing, then look at it" if converted.missing else "look at it"
    look = command_line("train", str(path), "--dry-run")
    return record, [f"written: {', '.join(written)}", *notes, f"{then}: {look}"]


def _comment(text: str) -> str:
    """A comment of YAML that no character of the text ends."""
    return f"# {printable(text)}"


def _about(path: Path) -> str:
    """The first sentence of a starter's comment."""
    comments = [line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# ")]
    return " ".join(comments[2:]).partition(". ")[0].removesuffix(".")


def _write(files: dict[Path, str], folder: Path, force: bool) -> list[str]:
    """Write recipes, and the schema that they name beside them.

    Raises UserErrors for those that exist and say something else: after a full disk the same command goes on.
    """
    from localdpo.recipe.describe import FILE_NAME, TITLE, schema_text

    schema = folder / FILE_NAME
    existing = [
        path
        for path, text in files.items()
        if path.exists() and not (path.is_file() and path.read_bytes() == text.encode())
    ]
    if schema.exists() and TITLE not in schema.read_text(errors="replace"):
        existing.append(schema)
    if existing and not force:
        raise UserErrors([UserError(f"{path}: exists already; --force replaces it") for path in existing])
    make_folder(folder)
    files = {**files, schema: schema_text()}
    for path, text in files.items():
        write_text(path, text)
    return [str(path) for path in files]
