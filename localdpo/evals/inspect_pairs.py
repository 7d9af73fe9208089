"""Which tokens of its pairs a run rewarded: beta * ln(policy / reference) of every response token.

The policy is the run's newest checkpoint, the reference the adapter that it started from (where the
reference is synced, the one in the checkpoint); both are weights in one loaded base. The sum over a
response is the pair's reward as training reports it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from localdpo.core.errors import UserError
from localdpo.data.store import MixturePart
from localdpo.model import lora
from localdpo.model.forward import Forward
from localdpo.model.load import load_base
from localdpo.recipe.load import load_recipe
from localdpo.records.checkpoints import require_checkpoint
from localdpo.records.rundir import RunDir
from localdpo.train.assemble import attach_adapter, check_paths, reference_weights
from localdpo.train.checkpoint import moved_reference
from localdpo.train.data import Rows, open_rows
from localdpo.train.inputs import ADAPTER, MODEL, TOKENIZER, TRAIN, VALID, tell_changes
from localdpo.train.token_rewards import PairRewards, as_text, score_pairs

Split = Literal["valid", "train"]


@dataclass(frozen=True)
class Inspection:
    """What was found.

    Attributes:
        checkpoint: name of the policy's checkpoint.
        source: what the recipe calls the data sets of the split's rows, or the one that was asked for.
        rows, scored: pairs of the split, and how many of them (the first) were scored.
        accuracy, margin: means over the scored pairs; no accuracy where all are tied.
        pairs: the pair that was asked for, or the worst first.
    """

    checkpoint: str
    split: Split
    source: str
    loss: str
    beta: float
    rows: int
    scored: int
    accuracy: float | None
    margin: float
    pairs: tuple[PairRewards, ...]


def inspect_run(
    run_dir: Path,
    *,
    split: Split = "valid",
    pair: int | None = None,
    worst: int = 20,
    limit: int | None = None,
    source: str | None = None,
    note: Callable[[str], None],
) -> Inspection:
    """Score the pair at row `pair` of the split, or find the `worst` of its first `limit` pairs.

    `source` keeps to one of the data sets that the recipe lists. `note` gets a line for each thing to
    know about the model and its checkpoint. The base is loaded once.

    Raises UserError: no intact checkpoint, rows that are no pairs, no such row or more than one, no such data
    set, or a model that does not load.
    """
    run = RunDir(run_dir)
    recipe = load_recipe(run.recipe)
    loss, data = recipe.loss.spec, recipe.loss.spec.data
    if data != "pairs":
        trains_on = "unpaired rows" if data == "unpaired" else data
        raise UserError(f"{run.path}: inspect shows pairs, and the {loss.name} loss trains on {trains_on}")
    latest = require_checkpoint(run, note).path
    rows_of = VALID if split == "valid" and recipe.data.valid is not None else TRAIN
    tell_changes(run, recipe, {MODEL, TOKENIZER, ADAPTER, rows_of}, note)
    base = load_base(recipe.model, trust_remote_code=recipe.trust_remote_code)
    config = attach_adapter(base.model, recipe)
    train, valid = open_rows(recipe, base.tokenizer)
    rows = _of_source(train if split == "train" else valid, split, source)
    places = _places(split, rows, pair, limit)
    forward = Forward(base.model)
    check_paths(forward, rows, note)
    reference: lora.Weights | None = None
    if recipe.loss.sync_every is not None:
        reference = moved_reference(latest)
    elif loss.needs_reference:
        reference = reference_weights(base.model, recipe, config)
    lora.load_weights(base.model, latest)
    scored = score_pairs(forward, rows, places, reference, recipe.loss.beta)
    margins = np.array([one.margin for one in scored])
    return Inspection(
        checkpoint=latest.name,
        split=split,
        source=_named(rows),
        loss=loss.name,
        beta=recipe.loss.beta,
        rows=len(rows),
        scored=len(scored),
        accuracy=float((margins > 0.0).mean()) if margins.any() else None,
        margin=float(margins.mean()),
        pairs=tuple(as_text(one, rows.store, base.tokenizer) for one in scored[:worst]),
    )


def _of_source(rows: Rows, split: Split, source: str | None) -> Rows:
    """The rows that are of one data set; all of them for None. Raises UserError where there is none such."""
    if source is None:
        return rows
    parts = rows.store.parts
    number = next((n for n, part in enumerate(parts) if part.source == source), None)
    if number is None:
        raise UserError(f"--source {source}: the {split} pairs are of {rows.store.source}")
    low, high = rows.store.bounds[number : number + 2]
    return replace(rows, indices=rows.indices[(rows.indices >= low) & (rows.indices < high)])


def _parts(rows: Rows) -> list[MixturePart]:
    """The data sets that the rows are of; all of the mixture's where there are no rows."""
    parts = rows.store.parts
    return [part for part, count in zip(parts, rows.counts, strict=True) if count] or list(parts)


def _named(rows: Rows) -> str:
    return ", ".join(part.source for part in _parts(rows))


def _places(split: Split, rows: Rows, pair: int | None, limit: int | None) -> np.ndarray:
    """Places of `rows` to score: that of one row of its data set, or the first `limit`.

    Raises UserError: the split has no rows, or not this one, or several data sets have it.
    """
    source = _named(rows)
    if len(rows) == 0:
        raise UserError(f"{source}: no rows are held out; give --split train")
    if pair is None:
        return np.arange(len(rows) if limit is None else min(limit, len(rows)))
    numbers = np.array([rows.store[int(i)].row + 1 for i in rows.indices])
    found = np.flatnonzero(numbers == pair)
    if len(found) == 0:
        raise UserError(f"--pair {pair}: {_why_not(rows, pair, numbers)} ({split} rows of {source})")
    owners = {rows.store.source_of(int(i)) for i in rows.indices[found]}
    if len(owners) > 1:
        raise UserError(f"--pair {pair}: {' and '.join(sorted(owners))} have such a row; give --source")
    return found


def _why_not(rows: Rows, pair: int, numbers: np.ndarray) -> str:
    """Why a row of the data is not among those of the split."""
    stores = [part.store for part in _parts(rows)]
    for store in stores:
        for reason, dropped in store.report.dropped.items():
            if pair - 1 in dropped:
                return f"this row was dropped: {reason}"
    if any(row.row + 1 == pair for store in stores for row in store):
        return "this row is in the other split; see --split"
    return f"expected a row from {numbers.min()} to {numbers.max()}"
