"""The data sets of a recipe, opened: rows to train and to evaluate on, and their reference scores."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from mlx_lm.tokenizer_utils import TokenizerWrapper

from localdpo.core.names import cache_dir
from localdpo.data.mixture import Mixture, Part, require_different
from localdpo.data.store import open_store
from localdpo.model import lora
from localdpo.model.arrays import float_types
from localdpo.model.load import Base, fingerprint
from localdpo.recipe.data import DataSource, WeightedSource
from localdpo.recipe.schema import Recipe
from localdpo.train.reference import ReferenceScores, ScoreFile, cache_file
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
            limit=entry.limit or limit,
            format_name=entry.format or data.format,
            cache_dir=cache_dir(),
            progress=partial(tell, entry.source),
        )
        weight = entry.weight if isinstance(entry, WeightedSource) else 1.0
        parts.append(Part(store, entry.source, weight))
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


class ScoreFiles:
    """The files of reference scores that a run opens: one for each token store, also where it is in two
    mixtures (data.train and data.valid), so that both know what either has scored."""

    def __init__(self, recipe: Recipe, base: Base) -> None:
        adapter = recipe.adapter
        self._adapter = "none" if adapter is None else fingerprint(lora.adapter_path(adapter))
        self._model = base.fingerprint
        self._precision = " ".join(sorted(str(dtype) for dtype in float_types(base.model)))
        self._kinds = ("logps", "public") if recipe.loss.splits_responses else ("logps",)
        self._open: dict[Path, ScoreFile] = {}

    def scores(self, rows: Rows) -> ReferenceScores:
        """The scores of the rows' mixture, as far as they are on disk."""
        return ReferenceScores([self._file(part) for part in rows.store.parts], self._kinds)

    def _file(self, part: Part) -> ScoreFile:
        path = cache_file(
            cache_dir(),
            data=part.store.fingerprint,
            model=self._model,
            adapter=self._adapter,
            precision=self._precision,
            kinds=self._kinds,
        )
        if path not in self._open:
            shape = part.store.response_lengths.shape
            self._open[path] = ScoreFile(path, (shape[0], shape[1]), self._kinds)
        return self._open[path]
