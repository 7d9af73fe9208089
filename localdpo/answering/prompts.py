"""Which prompts a run's models answer: those that a person gives, or held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from localdpo.core.errors import UserError, UserErrors
from localdpo.data.encode import require_unicode
from localdpo.data.prompts import PromptRow, read_prompt_rows
from localdpo.data.types import Kind
from localdpo.recipe.load import load_recipe
from localdpo.recipe.schema import Recipe
from localdpo.records.rundir import RunDir

DEMO_PROMPTS: Final = "demo:prompts/heldout"
GIVEN: Final = "given prompts"
_GIVE: Final = "give --prompts FILE or --prompt TEXT"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """A data set with prompts, and how to read it: as `read_prompt_rows` takes it.

    `only`: numbers of the rows, from 0, that count; None: all of them.
    """

    source: str
    kind: Kind = "prompts"
    format_name: str | None = None
    rows: int | None = None
    only: frozenset[int] | None = None


def choose_prompts(
    run: RunDir, file: str | None, texts: Sequence[str], limit: int | None
) -> tuple[list[PromptRow], str]:
    """The given texts and the first `limit` prompts of the given file; without either, of `default_sources`.
    Each prompt comes once, however many rows have it: several answers to one say little more than one.

    The second value says where they come from. Raises UserError(s) for a file without usable prompts.
    """
    for text in texts:
        require_unicode(text)
    given = [PromptRow(text) for text in dict.fromkeys(texts)]
    if file is None and given:
        return given, GIVEN
    sources = default_sources(run) if file is None else (HeldOut(file),)
    rows = prompts_of(sources, limit, {row.id for row in given})
    source = ", ".join(held_out.source for held_out in sources)
    return given + rows, f"{GIVEN}, {source}" if given else source


def prompts_of(sources: Sequence[HeldOut], limit: int | None, seen: set[str]) -> list[PromptRow]:
    """The first `limit` prompts of data sets, not those in `seen`, each once. Raises UserError(s)."""
    rows: list[PromptRow] = []
    for held_out in sources:
        left = None if limit is None else limit - len(rows)
        if left is None or left > 0:
            rows += read_prompt_rows(
                held_out.source,
                left,
                kind=held_out.kind,
                format_name=held_out.format_name,
                rows=held_out.rows,
                only=held_out.only,
                seen=seen,
            )
    return rows


def default_sources(run: RunDir) -> tuple[HeldOut, ...]:
    """The data sets with the held-out prompts of a run: what its recipe says, or the demo's own.

    Validation data is read as the run reads it: in the format and the limit that the recipe has for it. Rows
    that were held out of the training data are split off again, which needs the run's tokenizer.

    Raises UserError(s) if there is no prompt that the run was not trained on, or the data cannot be read.
    """
    recipe = load_recipe(run.recipe)
    if recipe.eval.prompts is not None:
        return (HeldOut(recipe.eval.prompts),)
    if recipe.data.is_demo:
        return (HeldOut(DEMO_PROMPTS),)
    return valid_sources(recipe) or _held_out(run, recipe)


def valid_sources(recipe: Recipe) -> tuple[HeldOut, ...]:
    """The recipe's validation data; none where it holds rows of its training data out."""
    return tuple(
        HeldOut(entry.source, recipe.loss.spec.data, entry.format or recipe.data.format, entry.limit)
        for entry in recipe.data.valid_sources
    )


def _held_out(run: RunDir, recipe: Recipe) -> tuple[HeldOut, ...]:
    """The rows of a run's training data that it holds out."""
    from localdpo.model.load import load_tokenizer
    from localdpo.train import inputs
    from localdpo.train.data import open_rows

    # `contestants` warns of a damaged inputs.json.
    before = inputs.recorded(run, lambda line: None)
    if before is None:
        raise UserError(f"{run.path}: nothing says which rows it held out; {_GIVE}")
    now = [inputs.recipe_input(run), *inputs.inputs_of(recipe, {inputs.TRAIN, inputs.TOKENIZER})]
    if changed := inputs.changes(recipe, before, now):
        why = f"since run {run.name} began, so it may have trained on what it would hold out now"
        raise UserErrors([UserError(f"{line} {why}; put it back, or {_GIVE}") for line in changed])
    data = recipe.data
    _, valid = open_rows(recipe, load_tokenizer(recipe.model, trust_remote_code=recipe.trust_remote_code))
    rows: dict[int, set[int]] = {}
    for index in valid.indices.tolist():
        rows.setdefault(valid.store.part_of(index), set()).add(valid.store[index].row)
    if not rows:
        raise UserError(f"{run.path}: its recipe holds no prompts out; {_GIVE}")
    return tuple(
        HeldOut(
            entry.source,
            recipe.loss.spec.data,
            entry.format or data.format,
            entry.limit or data.limit,
            frozenset(rows[part]),
        )
        for part, entry in enumerate(data.train_sources)
        if part in rows
    )
