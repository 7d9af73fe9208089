"""A constitution: a list of principles, each judged on its own, as in Constitutional AI (arXiv 2212.08073).

    principles:
      - id: truthful
        text: The answer states nothing that is false or made up.

One principle a question ("sample", drawn by a hash of the question's id, so the same one each time and in
both orders), or all of them and the mean ("all"). The shipped one is in `constitutions/`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from localdpo.core.errors import UserError, UserErrors
from localdpo.judging.base import Judge, Question, Verdict
from localdpo.judging.jury import agree
from localdpo.judging.panel import Panel
from localdpo.judging.rubric import Mode, Rubric, find_text, read_text, sha256_of_text
from localdpo.recipe.strict_yaml import read_yaml

Principles = Literal["sample", "all"]
SHIPPED: Final = Path(__file__).parent / "constitutions"
_INTRODUCTIONS: Final[dict[Mode, str]] = {
    "pairwise": """\
You compare two answers to the same conversation by one principle and by nothing else: the one that keeps it
better is the better one. When they do not differ in that, it is a tie. The principle:""",
    "score": """\
You score one answer to a conversation from 1 to 5 by one principle and by nothing else: 5 keeps it in full, 3
in part, 1 breaks it. The principle:""",
}


@dataclass(frozen=True, slots=True)
class Principle:
    """One sentence to judge by."""

    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Constitution:
    """Principles in the order of their file."""

    name: str
    principles: tuple[Principle, ...]

    def rubrics(self, mode: Mode) -> list[Rubric]:
        """One rubric for each principle."""
        return [_rubric(principle, mode) for principle in self.principles]


def load_constitution(name: str) -> Constitution:
    """The shipped constitution of this name, or the one in a YAML file.

    Raises UserError if the file cannot be read, UserErrors with everything that is wrong in it.
    """
    path = find_text(name, SHIPPED, ".yaml", "constitution")
    document = read_yaml(read_text(path))
    if document.problems:
        raise UserErrors([UserError(f"{path}:{one.line} {one.message}") for one in document.problems])
    entries = document.value.get("principles") if isinstance(document.value, dict) else None
    if not isinstance(entries, list) or not entries or len(document.value) != 1:  # type: ignore[arg-type]
        raise UserError(f"{path}: expected `principles:` with a list of one or more, each with id and text")
    problems = [
        UserError(f"{path}:{document.lines[('principles', number)]} {problem}")
        for number in range(len(entries))
        if (problem := _problem(entries, number))
    ]
    if problems:
        raise UserErrors(problems)
    return Constitution(path.stem, tuple(Principle(entry["id"], entry["text"]) for entry in entries))


class ConstitutionJudge(Panel):
    """The same judge under each principle. The verdict keeps the id of the principle that was asked."""

    def __init__(
        self,
        constitution: Constitution,
        mode: Mode,
        principles: Principles,
        build: Callable[[Rubric], Judge],
    ) -> None:
        self.principles = principles
        self.members = [build(rubric) for rubric in constitution.rubrics(mode)]
        self.name = f"{self.members[0].name} under {constitution.name} ({principles})"
        self.concurrency = min(member.concurrency for member in self.members)
        names = [principle.id for principle in constitution.principles]
        self.identity = {"constitution": constitution.name, "use": principles, "ids": " ".join(names)}

    def members_for(self, question: Question) -> Sequence[Judge]:
        if self.principles == "all":
            return self.members
        digest = hashlib.sha256(question.id.encode("utf-8", errors="replace")).digest()
        return [self.members[int.from_bytes(digest[:8], "big") % len(self.members)]]

    def combine(self, verdicts: Sequence[Verdict]) -> Verdict:
        if len(verdicts) == 1:
            return verdicts[0]
        names = [verdict.principle or "" for verdict in verdicts]
        return replace(agree(verdicts, names, "mean"), principle=" ".join(names))


def _rubric(principle: Principle, mode: Mode) -> Rubric:
    text = f"{_INTRODUCTIONS[mode]}\n\n{principle.text.strip()}"
    return Rubric(f"principle {principle.id}", mode, text, sha256_of_text(text), principle.id)


def _problem(entries: list[object], number: int) -> str | None:
    """What is wrong with one entry, if anything."""
    entry = entries[number]
    if not isinstance(entry, dict) or entry.keys() != {"id", "text"}:
        return "expected a principle with `id` and `text`"
    if not all(isinstance(value, str) and value.strip() for value in entry.values()):
        return "expected words in `id` and `text`"
    earlier = [other.get("id") for other in entries[:number] if isinstance(other, dict)]
    return f"the id {entry['id']} is taken" if entry["id"] in earlier else None
