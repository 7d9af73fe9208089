"""The rows that a run trains and evaluates on, and the micro-batches of each of its steps."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Final

import mlx.core as mx
import numpy as np
from mlx_lm.tokenizer_utils import TokenizerWrapper

from localdpo.core.names import cache_dir
from localdpo.data import batches
from localdpo.data.batches import Packing, ShapeTable, shares
from localdpo.data.encode import prompt_key
from localdpo.data.store import Mixture, MixturePart, open_store, require_different
from localdpo.data.types import Batch
from localdpo.model.forward import Forward, batch_arrays, filled, needed_shape
from localdpo.model.memory import rows_in_pass
from localdpo.recipe.schema import DataSource, Recipe, TrainSection, WeightedSource
from localdpo.train.ranks import ALONE, Ranks
from localdpo.train.step import BatchReference, Objective, StepArrays

NOTHING_HELD_OUT: Final = "no rows are held out: nothing is evaluated; give data.valid"


@dataclass(frozen=True)
class Rows:
    """Some rows of a mixture of token stores (mostly of one), in its order.

    Attributes:
        indices: int64 [N], which rows of the mixture, ascending. Methods take and return positions in it.
        pad: token id that fills padded columns; it reaches no result.
        rank, ranks: which share of the rows of a step is this process's, of how many.
    """

    store: Mixture
    indices: np.ndarray
    pad: int
    rank: int = 0
    ranks: int = 1

    def __len__(self) -> int:
        return len(self.indices)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Rows of each data set of the mixture."""
        return tuple(np.diff(np.searchsorted(self.indices, self.store.bounds)).tolist())

    @property
    def weights(self) -> np.ndarray:
        """How often an epoch passes over each row, float64 [N]."""
        return np.repeat(np.array(self.store.weights, dtype=np.float64), self.counts)

    @property
    def per_epoch(self) -> int:
        """Rows that an epoch takes; one that it takes twice counts twice."""
        return batches.rows_per_epoch(self.counts, self.store.weights)

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Positions of the rows that the 0-based `epoch` takes, int64 [per_epoch], ascending."""
        return batches.epoch_places(self.counts, self.store.weights, seed, epoch)

    def drawn(self, step: int, *, batch_size: int, seed: int) -> np.ndarray:
        """Positions of the rows of the 0-based `step`, int64 [<= batch_size], in drawn order."""
        epoch = step // batches.steps_per_epoch(self.per_epoch, batch_size)
        return self.epoch(seed, epoch)[batches.batch_rows(self.per_epoch, batch_size, seed, step)]

    def shares(self, step: int, *, batch_size: int, seed: int) -> list[np.ndarray]:
        """The positions of the step's rows, by rank."""
        positions = self.drawn(step, batch_size=batch_size, seed=seed)
        return [positions] if self.ranks == 1 else shares(positions, self.lengths(positions), self.ranks)

    def own(self, step: int, *, batch_size: int, seed: int) -> np.ndarray:
        """Those of the step's rows that this rank takes."""
        return self.shares(step, batch_size=batch_size, seed=seed)[self.rank]

    def batch(self, positions: np.ndarray) -> Batch:
        """These rows as one padded batch."""
        chosen = self.indices[positions]
        return batches.collate([self.store[int(i)] for i in chosen], self.pad, chosen)

    def lengths(self, positions: np.ndarray) -> np.ndarray:
        """Tokens of each of these rows: prompt and all responses."""
        chosen = self.indices[positions]
        return self.store.prompt_lengths[chosen] + self.store.response_lengths[chosen].sum(axis=1)

    def training_batch(
        self,
        step: int,
        *,
        batch_size: int,
        micro: int,
        seed: int,
        shared: bool,
        packing: Packing | None = None,
    ) -> list[Batch]:
        """This rank's micro-batches of the 0-based `step`: a pure function of (seed, step, rank).

        Where prompts are shared, rows are laid in a line, so each has about as many tokens; otherwise rows of
        similar length come together, since they pad each other. Where lines have few shapes, `packing` says
        how much each holds, whatever `micro` is.
        """
        positions = self.own(step, batch_size=batch_size, seed=seed)
        lengths = self.lengths(positions)
        if packing is not None:
            parts = batches.pack_micro(positions, lengths, packing)
        else:
            parts = (batches.deal_micro if shared else batches.split_micro)(positions, lengths, micro)
        # Those of about one length are computed side by side.
        parts.sort(key=lambda part: -int(self.lengths(part).sum()))
        return [self.batch(part) for part in parts]

    def parts_by_length(self, positions: np.ndarray, size: int) -> list[np.ndarray]:
        """These rows cut into parts of similar length, longest first: `size` rows at most, and no more than
        go through a model together.
        """
        parts = []
        for part in batches.split_micro(positions, self.lengths(positions), size):
            rows = rows_in_pass(int(self.lengths(part[:1])[0]), size)
            parts += [part[start : start + rows] for start in range(0, len(part), rows)]
        return parts

    def by_length(self, positions: np.ndarray, size: int) -> Iterator[Batch]:
        """These rows in batches of similar length, longest first."""
        return (self.batch(part) for part in self.parts_by_length(positions, size))


class DrawnRows:
    """The rows that this rank takes in a run's first steps, as its micro-batches take them: longest first
    within each step.
    """

    def __init__(self, rows: Rows, *, batch_size: int, seed: int, steps: int) -> None:
        drawn = [rows.own(step, batch_size=batch_size, seed=seed) for step in range(steps)]
        self._sizes = [len(positions) for positions in drawn]
        step = np.repeat(np.arange(steps), self._sizes)
        positions = np.concatenate(drawn)
        # Stable, as in `split_micro`.
        order = np.lexsort((-rows.lengths(positions), step))
        index = rows.indices[positions[order]]
        self._there = np.arange(max(self._sizes)) < np.array(self._sizes)[:, None]
        self._lengths = np.zeros(self._there.shape, dtype=np.int64)
        self._lengths[self._there] = rows.lengths(positions)[order]
        # Without the last token of the prompt, which heads each response.
        self._contexts = rows.store.prompt_lengths[index].astype(np.int64) - 1
        self._responses = rows.store.response_lengths[index].astype(np.int64)

    def shapes(self, micro: int, *, shared: bool, packed: bool, most: int) -> ShapeTable:
        """At most `most` shapes for micro-batches of at most `micro` rows.

        `packed`: for lines of as many rows as have room in the longest line of `micro` rows.
        """
        of_row, count = self._micro_batches(micro, shared=shared)
        packing = None
        if packed:
            longest = int(np.bincount(of_row, weights=self._lengths[self._there]).max())
            tokens = -(-longest // batches.MULTIPLE) * batches.MULTIPLE
            of_row, count = self._numbered(batches.pack(self._lengths, tokens, max(self._sizes)))
            packing = Packing(tokens, int(np.bincount(of_row).max()))
        scored, sequences = self._responses.sum(axis=1), self._responses.shape[1]
        needs = np.zeros((count, 3), dtype=np.int64)
        if packing is None:
            np.add.at(needs[:, 0], of_row, 1)
        else:
            needs[:, 0] = packing.rows
        np.add.at(needs[:, 2], of_row, scored)
        if shared:
            np.add.at(needs[:, 1], of_row, self._contexts + scored)
        else:
            np.maximum.at(needs[:, 1], of_row, self._contexts + self._responses.max(axis=1))
        real = self._contexts.sum() * (1 if shared else sequences) + 2 * scored.sum()
        table = batches.plan_shapes(needs, sequences=None if shared else sequences, real=int(real), most=most)
        return replace(table, packing=packing)

    def _numbered(self, of_step: np.ndarray) -> tuple[np.ndarray, int]:
        """Lines counted from 0 in each step [steps, rows], counted through for the rows that are there."""
        of_step = np.where(self._there, of_step, 0)
        counts = of_step.max(axis=1) + 1
        before = np.cumsum(counts) - counts
        return (before[:, None] + of_step)[self._there], int(counts.sum())

    def _micro_batches(self, micro: int, *, shared: bool) -> tuple[np.ndarray, int]:
        """(the micro-batch of each row, how many there are), as `Rows.training_batch` divides them."""
        parts, before = [], 0
        for size in self._sizes:
            part = batches.dealt(size, micro) if shared else np.arange(size, dtype=np.int64) // micro
            parts.append(before + part)
            before += -(-size // micro)
        return np.concatenate(parts), before


def micro_batch(rows: Rows, batch_size: int, tokens: int) -> int:
    """Rows in memory at once such that most micro-batches hold about `tokens` tokens, 1 to `batch_size`."""
    row = float(np.median(rows.lengths(np.arange(len(rows)))))
    return int(min(batch_size, max(1, tokens // row)))


def visited(rows: Rows, batch_size: int, seed: int, steps: int) -> np.ndarray:
    """Positions of the rows that the first `steps` steps draw, sorted."""
    seen = np.zeros(len(rows), dtype=bool)
    epochs, rest = divmod(steps, batches.steps_per_epoch(rows.per_epoch, batch_size))
    for epoch in range(epochs):
        seen[rows.epoch(seed, epoch)] = True
        if seen.all():
            break
    else:
        for step in range(steps - rest, steps):
            seen[rows.drawn(step, batch_size=batch_size, seed=seed)] = True
    return np.flatnonzero(seen)


def hold_out(store: Mixture, fraction: float, seed: int, pad: int) -> tuple[Rows, Rows]:
    """Training and held-out rows of a mixture, parted by prompt: no prompt is on both sides.

    A prompt is held out if a hash of it and of the seed is below `fraction`: about that share of the prompts
    is, and rows that are added later move no row from the held-out side to training. Prompts are the same
    that are so before or after they were cut, since every data set may be cut at a length of its own; what
    is the same is held out as soon as one of its prompts is.

    Few prompts may all fall on one side. The one with the lowest hash is then held out, or the one with the
    highest trains; only there may more data move a prompt from the held-out side to training. A mixture with
    a single prompt holds out nothing.
    """
    cut = np.fromiter(map(prompt_key, store.prompts()), np.int64, len(store))
    keys, of_row = np.unique(cut, return_inverse=True)
    # Numbers in [0, 1), the same on every machine.
    digests = (hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest() for key in keys.tolist())
    hashes = np.array([int.from_bytes(digest) / 2**64 for digest in digests])
    _, prompt = np.unique(_same(cut, store.prompt_keys), return_inverse=True)
    # Of what is the same, the lowest hash counts: rows that join it later can only lower that.
    lowest = np.full(prompt.max() + 1, 1.0)
    np.minimum.at(lowest, prompt, hashes[of_row])
    held = lowest < fraction
    if not held.any():
        held[lowest.argmin()] = True
    if held.all():
        held[lowest.argmax()] = False
    is_held = held[prompt]
    return Rows(store, np.flatnonzero(~is_held), pad), Rows(store, np.flatnonzero(is_held), pad)


def _same(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """A label int64 [N] for rows that agree in `first` or in `second` [N], also by way of rows between them.

    The label is the lowest of `first` among them, so `first` itself where `second` joins nothing more.
    """
    labels = first
    groups = [np.unique(key, return_inverse=True)[1] for key in (second, first)]
    while True:
        before = labels
        for group in groups:
            lowest = np.full(group.max() + 1, np.iinfo(np.int64).max)
            np.minimum.at(lowest, group, labels)
            labels = lowest[group]
        if np.array_equal(labels, before):
            return labels


# Called while a data set is tokenised, with its name and the number of rows read so far.
Progress = Callable[[str, int], object]
_PROGRESS_SECONDS: Final = 2.0


def open_rows(
    recipe: Recipe, wrapper: TokenizerWrapper, progress: Progress | None = None
) -> tuple[Rows, Rows]:
    """Training and validation rows, tokenised (once, each data set by itself) into the cache.

    `progress` is called every few seconds where that takes long.

    Raises UserError(s) for data that is missing, broken or listed twice.
    """
    data = recipe.data
    tokenizer = wrapper._tokenizer
    pad = int(tokenizer.pad_token_id or tokenizer.eos_token_id or 0)
    report = _at_intervals(progress or (lambda source, rows: None))
    train = _open("data.train", recipe, wrapper, data.train_sources, data.limit, report)
    if data.valid is None:
        return hold_out(train, data.valid_fraction, recipe.train.seed, pad)
    valid = _open("data.valid", recipe, wrapper, data.valid_sources, None, report)
    return Rows(train, np.arange(len(train)), pad), Rows(valid, np.arange(len(valid)), pad)


def _open(
    option: str,
    recipe: Recipe,
    wrapper: TokenizerWrapper,
    entries: tuple[DataSource, ...],
    limit: int | None,
    progress: Progress,
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
            progress=partial(progress, entry.source),
        )
        weight = entry.weight if isinstance(entry, WeightedSource) else 1.0
        parts.append(MixturePart(store, entry.source, weight))
    require_different(option, parts)
    return Mixture(parts)


def _at_intervals(progress: Progress) -> Progress:
    """`progress`, at most every _PROGRESS_SECONDS, and not before the first have passed."""
    last = time.monotonic()

    def report(source: str, rows: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _PROGRESS_SECONDS:
            progress(source, rows)
            last = time.monotonic()

    return report


class Feed:
    """This rank's micro-batches of each training step, and their arrays.

    Args:
        micro: rows in memory at once.
        shapes: that micro-batches are padded to; None where steps are not traced.
        reference: what scores rows under the reference; None for a loss without one.
        baseline: computes the KL baseline of a step's rows; None for a loss that does not read it.
    """

    def __init__(
        self,
        rows: Rows,
        forward: Forward,
        objective: Objective,
        train: TrainSection,
        *,
        micro: int,
        shapes: ShapeTable | None,
        reference: BatchReference | None,
        baseline: Callable[[Rows, np.ndarray], mx.array] | None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.rows, self.shapes, self._ranks = rows, shapes, ranks
        self._forward, self._objective, self._train, self._micro = forward, objective, train, micro
        self._reference, self._baseline = reference, baseline

    def positions(self, step: int) -> np.ndarray:
        """Positions of the rows of the 0-based `step`, on all ranks."""
        return self.rows.drawn(step, batch_size=self._train.batch_size, seed=self._train.seed)

    def tokens(self, step: int) -> list[int]:
        """Unpadded tokens of the step by rank: each prompt once, and every response."""
        by_rank = self.rows.shares(step, batch_size=self._train.batch_size, seed=self._train.seed)
        return [int(self.rows.lengths(positions).sum()) for positions in by_rank]

    def batches(self, step: int) -> list[Batch]:
        """The micro-batches of the 0-based `step`."""
        train = self._train
        return self.rows.training_batch(
            step,
            batch_size=train.batch_size,
            micro=self._micro,
            seed=train.seed,
            shared=self._forward.shared,
            packing=None if self.shapes is None else self.shapes.packing,
        )

    def arrays(self, batches: list[Batch]) -> list[StepArrays]:
        """The arrays of a step's micro-batches, with reference scores and what the whole step shares."""
        own = [int(index) for batch in batches for index in batch.indices]
        parts = self._ranks.gather((self._objective.count(batches), own))
        count = mx.array(float(sum(part for part, _ in parts)))
        indices = np.array([index for _, part in parts for index in part])
        baseline = None if self._baseline is None else self._baseline(self.rows, indices)
        shared, packing = self._forward.shared, None if self.shapes is None else self.shapes.packing
        micro_batches = []
        for batch in batches:
            shape = None if self.shapes is None else self.shapes.of(needed_shape(batch, shared=shared))
            places = len(batch.indices) if shape is None else shape.rows
            reference = None if self._reference is None else self._reference.sums(batch)
            # 1 for the places of rows, 0 for the rest: a micro-batch may have more places.
            there = (np.arange(places) < len(batch.indices)).astype(np.float32)
            micro_batches.append(
                StepArrays.of(
                    batch_arrays(batch, shared=shared, shape=shape),
                    count=count,
                    reference_N=_placed(reference and reference.total_N, batch, places),
                    reference_public_N=_placed(reference and reference.public_N, batch, places),
                    desirable_B=_placed(labels(batch), batch, places),
                    baseline=baseline,
                    weights_B=None if packing is None else mx.array(there),
                )
            )
        return micro_batches


def _placed(values_N: mx.array | None, batch: Batch, places: int) -> mx.array | None:
    """Values of a batch's rows or responses, at each place that of the row which it has (see `filled`)."""
    rows = len(batch.indices)
    if values_N is None or rows == places:
        return values_N
    return values_N.reshape(-1, rows)[:, mx.array(filled(rows, places))].reshape(-1)


def labels(batch: Batch) -> mx.array | None:
    """The labels of unpaired rows, bool; None for other rows."""
    return None if batch.desirable is None else mx.array(batch.desirable)
