"""Rubrics: what a judge is told to look at. A Markdown file that begins with its mode:

    ---
    mode: pairwise        (or: score)
    ---
    You compare two answers ...

The shipped ones are in `rubrics/`; a user's is named by its path. The sha256 of the whole file is its
identity: a verdict given under another text is never used again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from localdpo.core.errors import UserError
from localdpo.recipe.strict_yaml import read_yaml

Mode = Literal["pairwise", "score"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
SHIPPED: Final = Path(__file__).parent / "rubrics"
DEFAULTS: Final[dict[Mode, str]] = {"pairwise": "helpful", "score": "quality"}
_FENCE: Final = "---"
_MAX_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Rubric:
    """What to look at, for two answers ("pairwise") or one ("score").

    Attributes:
        name: the file's name without its ending.
        text: what the judge is told, without the head of the file.
        sha256: of the file's bytes, in hexadecimal.
        principle: the id of a constitution's principle if this was made from one.
    """

    name: str
    mode: Mode
    text: str
    sha256: str
    principle: str | None = None


def load_rubric(name: str) -> Rubric:
    """The shipped rubric of this name, or the one in a file (`name` ends in .md or holds a slash).

    Raises UserError.
    """
    path = find_text(name, SHIPPED, ".md", "rubric")
    content = read_text(path)
    head, text = _split(content, path)
    document = read_yaml(head)
    if document.problems:
        first = document.problems[0]
        # The head begins on the file's second line.
        raise UserError(f"{path}:{first.line + 1} {first.message}")
    mode = document.value.get("mode") if isinstance(document.value, dict) else None
    if mode not in MODES or document.value != {"mode": mode}:
        raise UserError(f"{path}: expected `mode: pairwise` or `mode: score`, and nothing else, in the head")
    if not text.strip():
        raise UserError(f"{path}: the rubric has no text")
    return Rubric(path.stem, mode, text.strip(), sha256_of_text(content))


def find_text(name: str, shipped: Path, suffix: str, what: str) -> Path:
    """The path of a shipped or a user's text file. Raises UserError when there is none."""
    own = "/" in name or name.endswith(suffix)
    path = Path(name).expanduser() if own else shipped / f"{name}{suffix}"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in shipped.glob(f"*{suffix}")))
        raise UserError(f"{name}: no such {what}; name one of {known}, or the path of a {suffix} file")
    return path


def read_text(path: Path) -> str:
    """A small UTF-8 text file. Raises UserError."""
    try:
        data = path.read_bytes()
        if len(data) > _MAX_BYTES:
            raise UserError(f"{path}: {len(data):,} bytes, expected at most {_MAX_BYTES:,}")
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None


def sha256_of_text(text: str) -> str:
    """The sha256 of the UTF-8 form of `text`, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", errors="replace")).hexdigest()


def _split(content: str, path: Path) -> tuple[str, str]:
    """The head between two lines of three dashes, and the text below."""
    lines = content.split("\n")
    if lines[0].strip() != _FENCE or _FENCE not in [line.strip() for line in lines[1:]]:
        raise UserError(f"{path}: expected a head of `---`, `mode: pairwise` (or score), `---` at the top")
    end = next(number for number, line in enumerate(lines) if number and line.strip() == _FENCE)
    return "\n".join(lines[1:end]), "\n".join(lines[end + 1 :])


def rubrics_by_mode(names: Sequence[str]) -> dict[Mode, str]:
    """The rubrics that a person named, by what they are for. Raises UserError for two of one mode."""
    found: dict[Mode, str] = {}
    for name in names:
        mode = load_rubric(name).mode
        if mode in found:
            raise UserError(f"--rubric {name}: there is one for mode {mode} already, {found[mode]}")
        found[mode] = name
    return found
