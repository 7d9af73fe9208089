"""Prompts from a data source, as they stand there: text, or chat messages."""

from __future__ import annotations

import itertools

from localdpo.core.errors import UserError, UserErrors
from localdpo.data.fields import RowProblem, read_side
from localdpo.data.sources import open_source
from localdpo.data.types import Side

_SHOWN_PROBLEMS = 20


def read_prompts(source: str, limit: int) -> list[Side]:
    """The first `limit` prompts of a data source.

    The source is whatever data.train may be; only the field `prompt` of a row is read.
    Raises UserError(s) with file:row for a source that cannot be read, a row without a prompt, and no rows.
    """
    opened = open_source(source)
    prompts: list[Side] = []
    problems: list[UserError] = []
    for row in itertools.islice(opened.rows(), limit):
        try:
            if row.record is None:
                raise RowProblem("prompt", row.problem)
            prompts.append(read_side(row.record, "prompt"))
        except RowProblem as problem:
            problems.append(UserError(f"{opened.label}:{row.number + 1} {problem}"))
    if problems:
        raise UserErrors(problems[:_SHOWN_PROBLEMS])
    if not prompts:
        raise UserError(f"{opened.label}: no prompts in it")
    return prompts


def prompt_text(prompt: Side) -> str:
    """What to show of a prompt: its text, or the last user message of a conversation."""
    if isinstance(prompt, str):
        return prompt
    users = [message for message in prompt if message.get("role") == "user"]
    return str((users or prompt)[-1].get("content", ""))
