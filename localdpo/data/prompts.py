"""Prompts from a data source, as they stand there: text, or chat messages."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from localdpo.core.errors import UserError, UserErrors
from localdpo.data.fields import RowProblem, read_side
from localdpo.data.sources import open_source
from localdpo.data.types import Side

PROMPT_ID_DIGITS = 16
_SHOWN_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A prompt and what stands beside it in its row.

    Attributes:
        id: the first digits of the sha256 of the prompt; equal prompts have equal ids.
        facts: the other columns of the row, for heuristics and judges that check facts.
    """

    id: str
    prompt: Side
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What to show of the prompt."""
        return prompt_text(self.prompt)


def prompt_row(prompt: Side, facts: Mapping[str, Any] | None = None) -> PromptRow:
    """The row of a prompt, with its id."""
    return PromptRow(prompt_id(prompt), prompt, facts or {})


def prompt_id(prompt: Side) -> str:
    """The first PROMPT_ID_DIGITS hexadecimal digits of the sha256 of a prompt as JSON."""
    text = json.dumps(prompt, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:PROMPT_ID_DIGITS]


def read_prompt_rows(source: str, limit: int | None = None) -> list[PromptRow]:
    """The first `limit` prompts of a data source with the other columns of their rows; None: all of them.

    The source is whatever data.train may be; of a row the field `prompt` must be there.
    Raises UserError(s) with file:row for a source that cannot be read, a row without a prompt, and no rows.
    """
    opened = open_source(source)
    found: list[PromptRow] = []
    problems: list[UserError] = []
    for row in itertools.islice(opened.rows(), limit):
        try:
            if row.record is None:
                raise RowProblem("prompt", row.problem)
            others = {name: value for name, value in row.record.items() if name != "prompt"}
            found.append(prompt_row(read_side(row.record, "prompt"), others))
        except RowProblem as problem:
            problems.append(UserError(f"{opened.label}:{row.number + 1} {problem}"))
    if problems:
        raise UserErrors(problems[:_SHOWN_PROBLEMS])
    if not found:
        raise UserError(f"{opened.label}: no prompts in it")
    return found


def read_prompts(source: str, limit: int) -> list[Side]:
    """The prompts of `read_prompt_rows`, without the other columns."""
    return [row.prompt for row in read_prompt_rows(source, limit)]


def prompt_text(prompt: Side) -> str:
    """What to show of a prompt: its text, or the last user message of a conversation."""
    if isinstance(prompt, str):
        return prompt
    users = [message for message in prompt if message.get("role") == "user"]
    return str((users or prompt)[-1].get("content", ""))
