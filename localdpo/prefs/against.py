"""The prompts of validation and evaluation sets, whatever their format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from localdpo.core.errors import UserError
from localdpo.data.examples import Problem, Skipped, read_rows
from localdpo.data.fields import RowProblem, read_side
from localdpo.data.formats import FORMATS
from localdpo.data.sources import Source, open_source
from localdpo.data.types import Kind
from localdpo.prefs.checks.overlap import EvaluationPrompt
from localdpo.prefs.rows import prompt_texts

_LOOKED_AT = 100


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


def _prompts(source: Source) -> Iterator[EvaluationPrompt]:
    kind = _kind(source)
    if kind is None:
        yield from _prompt_columns(source)
        return
    for row in read_rows(source, kind):
        if not isinstance(row.result, Problem | Skipped):
            yield EvaluationPrompt(prompt_texts(row.result.prompt)[1], f"{source.label}:{row.rows[0] + 1}")


def _kind(source: Source) -> Kind | None:
    """Which kind of data the source is: pairs, demonstrations, or None for prompts alone."""
    columns: set[str] = set()
    for _, row in zip(range(_LOOKED_AT), source.rows(), strict=False):
        columns |= set(row.record or ())
    fitting = [entry.kind for entry in FORMATS if entry.detected and entry.columns <= columns]
    if "pairs" in fitting:
        return "pairs"
    return fitting[0] if fitting and "prompt" not in columns else None


def _prompt_columns(source: Source) -> Iterator[EvaluationPrompt]:
    for row in source.rows():
        try:
            prompt = read_side(row.record or {}, "prompt")
        except RowProblem:
            continue
        yield EvaluationPrompt(prompt_texts(prompt)[1], f"{source.label}:{row.number + 1}")
