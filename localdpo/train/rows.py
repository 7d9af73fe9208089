"""The rows that a run trains and evaluates on, and their batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from localdpo.data.batches import (
    ShapeTable,
    batch_rows,
    collate,
    epoch_places,
    plan_shapes,
    rows_per_epoch,
    split_micro,
    steps_per_epoch,
)
from localdpo.data.encode import prompt_key
from localdpo.data.store import Mixture
from localdpo.data.types import Batch
from localdpo.model.memory import rows_in_pass

NOTHING_HELD_OUT: Final = "no rows are held out: nothing is evaluated; give data.valid"


@dataclass(frozen=True)
class Rows:
    """Some rows of a mixture of token stores (mostly of one), in its order.

    Attributes:
        indices: int64 [N] places in the mixture, ascending.
        pad: token id that fills padded columns; it reaches no result.
    """

    store: Mixture
    indices: np.ndarray
    pad: int

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
        return rows_per_epoch(self.counts, self.store.weights)

    def epoch(self, seed: int, epoch: int) -> np.ndarray:
        """Places of the rows that the 0-based `epoch` takes, int64 [per_epoch], ascending."""
        return epoch_places(self.counts, self.store.weights, seed, epoch)

    def drawn(self, step: int, *, batch_size: int, seed: int) -> np.ndarray:
        """Places of the rows of the 0-based `step`, int64 [<= batch_size], in drawn order."""
        epoch = step // steps_per_epoch(self.per_epoch, batch_size)
        return self.epoch(seed, epoch)[batch_rows(self.per_epoch, batch_size, seed, step)]

    def batch(self, places: np.ndarray) -> Batch:
        """The rows at these places of `indices` as one padded batch."""
        chosen = self.indices[places]
        return collate([self.store[int(i)] for i in chosen], self.pad, chosen)

    def lengths(self, places: np.ndarray) -> np.ndarray:
        """Tokens of each row at these places: prompt and all responses."""
        chosen = self.indices[places]
        return self.store.prompt_lengths[chosen] + self.store.response_lengths[chosen].sum(axis=1)

    def training_batch(self, step: int, *, batch_size: int, micro: int, seed: int) -> list[Batch]:
        """The micro-batches of the 0-based `step`: a pure function of (seed, step)."""
        places = self.drawn(step, batch_size=batch_size, seed=seed)
        return [self.batch(part) for part in split_micro(places, self.lengths(places), micro)]

    def parts_by_length(self, places: np.ndarray, size: int) -> list[np.ndarray]:
        """These places cut into parts of similar length, longest first: `size` rows at most, and no more than
        go through a model together.
        """
        parts = []
        for part in split_micro(places, self.lengths(places), size):
            rows = rows_in_pass(int(self.lengths(part[:1])[0]), size)
            parts += [part[start : start + rows] for start in range(0, len(part), rows)]
        return parts

    def by_length(self, places: np.ndarray, size: int) -> Iterator[Batch]:
        """All rows at these places in batches of similar length, longest first."""
        return (self.batch(part) for part in self.parts_by_length(places, size))


class Drawn:
    """The rows of a run's first steps as its micro-batches take them: longest first within each step."""

    def __init__(self, rows: Rows, *, batch_size: int, seed: int, steps: int) -> None:
        drawn = [rows.drawn(step, batch_size=batch_size, seed=seed) for step in range(steps)]
        step = np.repeat(np.arange(steps), [len(places) for places in drawn])
        places = np.concatenate(drawn)
        # Stable, as in `split_micro`.
        order = np.lexsort((-rows.lengths(places), step))
        index, self._step = rows.indices[places[order]], step[order]
        # Without the last token of the prompt, which heads each response.
        self._contexts = rows.store.prompt_lengths[index].astype(np.int64) - 1
        self._responses = rows.store.response_lengths[index].astype(np.int64)

    def shapes(self, micro: int, *, shared: bool, most: int) -> ShapeTable:
        """At most `most` shapes for micro-batches of at most `micro` rows."""
        first = np.searchsorted(self._step, self._step)
        starts = np.flatnonzero((np.arange(len(first)) - first) % micro == 0)
        scored, longest = self._responses.sum(axis=1), self._responses.max(axis=1)
        responses = self._responses.shape[1]
        whole = np.maximum(self._contexts, 1 if shared else 0) + longest
        real = self._contexts.sum() * (1 if shared else responses) + 2 * scored.sum()
        needs = np.column_stack(
            [
                np.diff(starts, append=len(first)),
                np.maximum.reduceat(whole, starts),
                np.maximum.reduceat(longest if shared else whole, starts),
                np.add.reduceat(scored, starts),
            ]
        )
        return plan_shapes(needs, responses, real=int(real), most=most)


def micro_batch(rows: Rows, batch_size: int, tokens: int) -> int:
    """Rows in memory at once such that most micro-batches hold about `tokens` tokens, 1 to `batch_size`."""
    row = float(np.median(rows.lengths(np.arange(len(rows)))))
    return int(min(batch_size, max(1, tokens // row)))


def visited(rows: Rows, batch_size: int, seed: int, steps: int) -> np.ndarray:
    """Places of the rows that the first `steps` steps draw, sorted."""
    seen = np.zeros(len(rows), dtype=bool)
    epochs, rest = divmod(steps, steps_per_epoch(rows.per_epoch, batch_size))
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
    cut = np.array([prompt_key(store[i].prompt) for i in range(len(store))], dtype=np.int64)
    keys, of_row = np.unique(cut, return_inverse=True)
    hashes = np.array([_unit_hash(int(key), seed) for key in keys])
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


def _unit_hash(key: int, seed: int) -> float:
    """A number in [0, 1), the same for the same arguments on every machine."""
    digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _same(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A label int64 [N] for rows that agree in `one` or in `other` [N], also by way of rows between them.

    The label is the lowest of `one` among them, so `one` itself where `other` joins nothing more.
    """
    labels = one
    groups = [np.unique(key, return_inverse=True)[1] for key in (other, one)]
    while True:
        before = labels
        for group in groups:
            lowest = np.full(group.max() + 1, np.iinfo(np.int64).max)
            np.minimum.at(lowest, group, labels)
            labels = lowest[group]
        if np.array_equal(labels, before):
            return labels


def every_row(store: Mixture, pad: int) -> Rows:
    """All rows of a mixture in its order."""
    return Rows(store, np.arange(len(store)), pad)
