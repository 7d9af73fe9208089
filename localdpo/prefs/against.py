"""The prompts of validation and evaluation sets, whatever their format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from localdpo.core.errors import UserError
from localdpo.data.rows import InvalidRow, Skipped, read_rows
from localdpo.data.sources import RowSource, open_source
from localdpo.prefs.checks.overlap import EvaluationPrompt
from localdpo.prefs.rows import prompt_texts


def evaluation_prompts(sources: Sequence[str]) -> list[EvaluationPrompt]:
    """The prompts of all sources, each with `file:row`; rows that cannot be read are passed over.

    Raises UserError for a source that is not there, or without a prompt.
    """
    found: list[EvaluationPrompt] = []
    for name in sources:
        source = open_source(name)
        prompts = list(_prompts(source))
        if not prompts:
            raise UserError(f"{name}: no prompts in it to compare with; expected a column prompt")
        found += prompts
    return found


def _prompts(source: RowSource) -> Iterator[EvaluationPrompt]:
    for row in read_rows(source, "prompts"):
        if not isinstance(row.result, InvalidRow | Skipped):
            yield EvaluationPrompt(prompt_texts(row.result.prompt)[1], f"{source.label}:{row.rows[0] + 1}")
