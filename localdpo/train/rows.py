"""The rows that a run trains and evaluates on, and their batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from localdpo.data.batches import batch_rows, collate, epoch_order, split_micro
from localdpo.data.store import TokenStore
from localdpo.data.types import Batch


@dataclass(frozen=True)
class Rows:
    """Some rows of a token store, in a fixed order.

    Attributes:
        indices: int64 [N] places in the store.
        pad: token id that fills padded columns; it reaches no result.
    """

    store: TokenStore
    indices: np.ndarray
    pad: int

    def __len__(self) -> int:
        return len(self.indices)

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
        places = batch_rows(len(self), batch_size, seed, step)
        return [self.batch(part) for part in split_micro(places, self.lengths(places), micro)]

    def by_length(self, places: np.ndarray, size: int) -> Iterator[Batch]:
        """All rows at these places in batches of similar length, longest first."""
        for part in split_micro(places, self.lengths(places), len(places)):
            for start in range(0, len(part), size):
                yield self.batch(part[start : start + size])


def visited(rows: int, batch_size: int, seed: int, steps: int) -> np.ndarray:
    """Places of the rows that the first `steps` steps draw, sorted."""
    if steps * batch_size >= rows:
        return np.arange(rows)
    return np.unique(np.concatenate([batch_rows(rows, batch_size, seed, step) for step in range(steps)]))


def hold_out(store: TokenStore, fraction: float, seed: int, pad: int) -> tuple[Rows, Rows]:
    """Training and held-out rows of one store; a store of a single row holds out nothing."""
    order = epoch_order(len(store), seed, 0)
    held = max(1, round(len(store) * fraction)) if len(store) > 1 else 0
    return Rows(store, np.sort(order[held:]), pad), Rows(store, np.sort(order[:held]), pad)


def every_row(store: TokenStore, pad: int) -> Rows:
    """All rows of a store in its order."""
    return Rows(store, np.arange(len(store)), pad)
