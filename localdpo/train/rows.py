"""The rows that a run trains and evaluates on, and their batches."""

from __future__ import annotations

import hashlib
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

    def parts_by_length(self, places: np.ndarray, size: int) -> list[np.ndarray]:
        """These places cut into parts of similar length, longest first."""
        return split_micro(places, self.lengths(places), size)

    def by_length(self, places: np.ndarray, size: int) -> Iterator[Batch]:
        """All rows at these places in batches of similar length, longest first."""
        return (self.batch(part) for part in self.parts_by_length(places, size))


def micro_batch(rows: Rows, batch_size: int, tokens: int) -> int:
    """Rows in memory at once such that most micro-batches hold about `tokens` tokens, 1 to `batch_size`."""
    row = float(np.median(rows.lengths(np.arange(len(rows)))))
    return int(min(batch_size, max(1, tokens // row)))


def visited(rows: int, batch_size: int, seed: int, steps: int) -> np.ndarray:
    """Places of the rows that the first `steps` steps draw, sorted."""
    if steps * batch_size >= rows:
        return np.arange(rows)
    return np.unique(np.concatenate([batch_rows(rows, batch_size, seed, step) for step in range(steps)]))


def hold_out(store: TokenStore, fraction: float, seed: int, pad: int) -> tuple[Rows, Rows]:
    """Training and held-out rows of one store, parted by prompt: no prompt is on both sides.

    Prompts are drawn by the seed until `fraction` of the rows is held out. A store with a single
    prompt holds out nothing.
    """
    _, prompt = np.unique([_digest(store[i].prompt) for i in range(len(store))], return_inverse=True)
    counts = np.bincount(prompt)
    order = epoch_order(len(counts), seed, 0)
    wanted = max(1, round(len(store) * fraction))
    held = order[: min(int(np.searchsorted(np.cumsum(counts[order]), wanted)) + 1, len(counts) - 1)]
    is_held = np.isin(prompt, held)
    return Rows(store, np.flatnonzero(~is_held), pad), Rows(store, np.flatnonzero(is_held), pad)


def _digest(ids: np.ndarray) -> int:
    return int.from_bytes(hashlib.blake2b(ids.tobytes(), digest_size=7).digest())


def every_row(store: TokenStore, pad: int) -> Rows:
    """All rows of a store in its order."""
    return Rows(store, np.arange(len(store)), pad)
