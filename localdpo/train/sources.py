"""The data sets of a recipe, opened: rows to train and to evaluate on, and their reference scores."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Final

import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from localdpo.core.names import cache_dir
from localdpo.data.store import Mixture, MixturePart, open_store, require_different
from localdpo.model import lora
from localdpo.model.arrays import float_types
from localdpo.model.backend import Backend
from localdpo.model.forward import Forward
from localdpo.model.load import Base
from localdpo.recipe.schema import DataSource, Recipe, WeightedSource
from localdpo.train.reference import ReferenceScores
from localdpo.train.rows import Rows, every_row, hold_out

# Told while a data set is tokenised: its name and the rows that were read of it so far.
Tell = Callable[[str, int], object]
_TELL_SECONDS: Final = 2.0


def open_rows(recipe: Recipe, wrapper: TokenizerWrapper, tell: Tell | None = None) -> tuple[Rows, Rows]:
    """Training and validation rows, tokenised (once, each data set by itself) into the cache.

    `tell` is called now and then where that takes long.

    Raises UserError(s) for data that is missing, broken or listed twice.
    """
    data = recipe.data
    tokenizer = wrapper._tokenizer
    pad = int(tokenizer.pad_token_id or tokenizer.eos_token_id or 0)
    tell = _now_and_then(tell or (lambda source, rows: None))
    train = _open("data.train", recipe, wrapper, data.train_sources, data.limit, tell)
    if data.valid is None:
        return hold_out(train, data.valid_fraction, recipe.train.seed, pad)
    valid = _open("data.valid", recipe, wrapper, data.valid_sources, None, tell)
    return every_row(train, pad), every_row(valid, pad)


def _open(
    option: str,
    recipe: Recipe,
    wrapper: TokenizerWrapper,
    entries: tuple[DataSource, ...],
    limit: int | None,
    tell: Tell,
) -> Mixture:
    """The data sets that `option` lists; `limit` is for those without one of their own."""
    data, train = recipe.data, recipe.train
    parts = []
    for entry in entries:
        store = open_store(
            entry.source,
            kind=recipe.loss.spec.data,
            tokenizer=wrapper._tokenizer,
            template=data.template,
            max_length=entry.max_length or train.max_length,
            max_prompt_length=entry.max_prompt_length or train.max_prompt_length,
            truncation=entry.truncation or train.truncation,
            end_ids=wrapper.eos_token_ids,
            template_kwargs=data.chat_template_kwargs,
            limit=entry.limit or limit,
            format_name=entry.format or data.format,
            cache_dir=cache_dir(),
            progress=partial(tell, entry.source),
        )
        weight = entry.weight if isinstance(entry, WeightedSource) else 1.0
        parts.append(MixturePart(store, entry.source, weight))
    require_different(option, parts)
    return Mixture(parts)


def _now_and_then(tell: Tell) -> Tell:
    """`tell`, at most every _TELL_SECONDS, and not before the first have passed."""
    last = time.monotonic()

    def told(source: str, rows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_SECONDS:
            tell(source, rows)
            last = time.monotonic()

    return told


def open_scores(
    recipe: Recipe,
    base: Base,
    backend: Backend,
    forward: Forward,
    rows: Rows,
    places: np.ndarray,
    *,
    batch: int,
    note: Callable[[str], None],
) -> ReferenceScores:
    """The scores of `rows` at `places` under the recipe's start, as far as they are on disk.

    `batch`: rows that are scored at once. `note`: see ReferenceScores.
    """
    # A fresh adapter adds nothing, whatever its size; a fresh DoRA computes with the norms of the weights.
    adapter = f"fresh {recipe.lora.type or 'lora'}"
    if recipe.adapter is not None:
        adapter = lora.adapter_fingerprint(lora.adapter_path(recipe.adapter))
    precision = " ".join(sorted(str(dtype) for dtype in float_types(base.model)))
    path = f"shared {forward.shared} aligned {forward.align}"
    computed = f"mlx {version('mlx')} {backend.device} {backend.blas}"
    return ReferenceScores(
        cache_dir(),
        [base.fingerprint, adapter, precision, path, computed],
        rows,
        places,
        batch=batch,
        kinds=("logps", "public") if recipe.loss.splits_responses else ("logps",),
        note=note,
    )
