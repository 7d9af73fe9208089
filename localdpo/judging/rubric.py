"""What a judge looks at: a rubric, or the principles of a constitution.

A rubric is a Markdown file that begins with its mode:

    ---
    mode: pairwise        (or: score)
    ---
    You compare two answers ...

The sha256 of the whole file is its identity: a verdict given under another text is never used again. A
constitution is a YAML file of principles, each judged on its own, as in Constitutional AI (arXiv 2212.08073):

    principles:
      - id: truthful
        text: The answer states nothing that is false or made up.

The shipped ones are in `rubrics/` and `constitutions/`; a user's is named by its path.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, Literal, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, StringConstraints, field_validator

from localdpo.core.errors import UserError
from localdpo.recipe.strict_yaml import load_yaml, read_text, read_yaml

Mode = Literal["pairwise", "score"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
SHIPPED_RUBRICS: Final = Path(__file__).parent / "rubrics"
SHIPPED_CONSTITUTIONS: Final = Path(__file__).parent / "constitutions"
DEFAULTS: Final[dict[Mode, str]] = {"pairwise": "helpful", "score": "quality"}
_FENCE: Final = "---"
_INTRODUCTIONS: Final[dict[Mode, str]] = {
    "pairwise": """\
You compare two answers to the same conversation by one principle and by nothing else: the one that keeps it
better is the better one. When they do not differ in that, it is a tie. The principle:""",
    "score": """\
You score one answer to a conversation from 1 to 5 by one principle and by nothing else: 5 keeps it in full, 3
in part, 1 breaks it. The principle:""",
}


@dataclass(frozen=True, slots=True)
class Rubric:
    """What to look at, for two answers ("pairwise") or one ("score").

    Attributes:
        name: the file's name without its ending.
        text: what the judge reads, without the head of the file.
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
    path = _find_file(name, SHIPPED_RUBRICS, ".md", "rubric")
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


def rubrics_by_mode(names: Sequence[str]) -> dict[Mode, str]:
    """The rubrics that a person named, by what they are for. Raises UserError for two of one mode."""
    rubrics: dict[Mode, str] = {}
    for name in names:
        mode = load_rubric(name).mode
        if mode in rubrics:
            raise UserError(f"--rubric {name}: there is one for mode {mode} already, {rubrics[mode]}")
        rubrics[mode] = name
    return rubrics


Text: TypeAlias = Annotated[str, StringConstraints(pattern=r"\S")]


class Principle(BaseModel):
    """One sentence to judge by."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    id: Text
    text: Text


class _ConstitutionFile(BaseModel):
    model_config = ConfigDict(extra="forbid")
    principles: tuple[Principle, ...]

    @field_validator("principles")
    @classmethod
    def _check_ids(cls, principles: tuple[Principle, ...]) -> tuple[Principle, ...]:
        if not principles:
            raise ValueError("expected one or more, each with id and text")
        counts = Counter(principle.id for principle in principles)
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"each needs an id of its own; given twice: {', '.join(twice)}")
        return principles


@dataclass(frozen=True, slots=True)
class Constitution:
    """Principles in the order of their file."""

    name: str
    principles: tuple[Principle, ...]

    def rubrics(self, mode: Mode) -> list[Rubric]:
        """One rubric for each principle."""
        texts = [f"{_INTRODUCTIONS[mode]}\n\n{each.text.strip()}" for each in self.principles]
        return [
            Rubric(f"principle {principle.id}", mode, text, sha256_of_text(text), principle.id)
            for principle, text in zip(self.principles, texts, strict=True)
        ]

    def drawn(self, prompt_id: str) -> int:
        """The index of the principle that a prompt is judged by, drawn by a hash of the prompt's id."""
        digest = hashlib.sha256(prompt_id.encode("utf-8", errors="replace")).digest()
        return int.from_bytes(digest[:8], "big") % len(self.principles)


def load_constitution(name: str) -> Constitution:
    """The shipped constitution of this name, or the one in a YAML file.

    Raises UserError if the file cannot be read, UserErrors with everything that is wrong in it.
    """
    path = _find_file(name, SHIPPED_CONSTITUTIONS, ".yaml", "constitution")
    return Constitution(path.stem, load_yaml(path, _ConstitutionFile).principles)


def _find_file(name: str, shipped: Path, suffix: str, what: str) -> Path:
    """The path of a shipped or a user's text file. Raises UserError when there is none."""
    own = "/" in name or name.endswith(suffix)
    path = Path(name).expanduser() if own else shipped / f"{name}{suffix}"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in shipped.glob(f"*{suffix}")))
        raise UserError(f"{name}: no such {what}; name one of {known}, or the path of a {suffix} file")
    return path


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
