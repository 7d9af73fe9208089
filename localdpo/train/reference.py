"""Log-probabilities of the responses under the frozen reference, computed once and kept on disk.

Every token store has a file of its own, so a data set's scores are found again in whatever mixture it is.
The reference never changes, so each row is scored at most once for each (data, tokenizer, template,
truncation, model, adapter, precision): all of these are in the file's name. A row that is not
scored yet holds NaN, so a run that visits a few rows of a large set scores only those, and a pass
that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import numpy as np

from localdpo.core.atomic import write_bytes
from localdpo.data.types import Batch
from localdpo.model.forward import Arrays, Forward
from localdpo.train.rows import Rows

VERSION = 1
SAVE_SECONDS = 30.0
GoOn = Callable[[int, int], bool]


def cache_file(
    cache_dir: Path,
    *,
    data: str,
    model: str,
    adapter: str,
    precision: str,
    kinds: Sequence[str] = ("logps",),
) -> Path:
    """The file that holds the scores of one store under one reference; every argument is part of its name."""
    key = "\n".join([f"v{VERSION}", data, model, adapter, precision, *kinds])
    return cache_dir / "reference" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"


class Reference(Protocol):
    """What gives the scores of a batch under the reference."""

    def arrays(self, batch: Batch) -> dict[str, mx.array]:
        """`reference` [K*P] in nats, and `reference_public` where responses are split."""
        ...


def reference_arrays(scores: Arrays) -> dict[str, mx.array]:
    """`Forward.scores` under the reference by the names that an objective takes them under."""
    names = {"logps": "reference", "public": "reference_public"}
    return {name: scores[kind] for kind, name in names.items() if kind in scores}


class ScoreFile:
    """The scores of one store in nats, NaN where a row was not scored.

    `shape` is [rows of the store, K]; `kinds` are those of `Forward.scores` that are kept. With one kind
    `values` is float32 of that shape, with more of them it has one more axis, the kinds. All kinds are plain
    sums, so that no option of the loss (such as ld_alpha) is in them.
    """

    def __init__(self, file: Path, shape: tuple[int, int], kinds: Sequence[str] = ("logps",)) -> None:
        self.file = file
        self.values = _read(file, shape if len(kinds) == 1 else (*shape, len(kinds)))
        self._changed = False

    def put(self, rows: np.ndarray, scores: np.ndarray) -> None:
        """Set the scores of these rows of the store."""
        self.values[rows] = scores
        self._changed = True

    def save(self) -> None:
        """Write the scores, all or nothing, if there are new ones."""
        if not self._changed:
            return
        stream = io.BytesIO()
        np.save(stream, self.values, allow_pickle=False)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.file, stream.getvalue())
        self._changed = False


class ReferenceScores:
    """The scores of the rows of a mixture: the files of its stores, end to end."""

    def __init__(self, files: Sequence[ScoreFile], kinds: Sequence[str] = ("logps",)) -> None:
        self.files, self.kinds = tuple(files), tuple(kinds)
        self._bounds = np.cumsum([0, *(len(file.values) for file in files)])

    def _by_file(self, indices: np.ndarray) -> Iterator[tuple[ScoreFile, np.ndarray, np.ndarray]]:
        """(file, which of the indices are in it, the rows of its store that they mean)."""
        number = np.searchsorted(self._bounds, indices, side="right") - 1
        for n in np.unique(number):
            here = np.flatnonzero(number == n)
            yield self.files[n], here, indices[here] - self._bounds[n]

    def values(self, indices: np.ndarray) -> np.ndarray:
        """The scores of rows of the mixture, float32 [P, K], or [P, K, kinds] of more than one kind."""
        found = np.empty((len(indices), *self.files[0].values.shape[1:]), dtype=np.float32)
        for file, here, rows in self._by_file(indices):
            found[here] = file.values[rows]
        return found

    def missing(self, indices: np.ndarray) -> np.ndarray:
        """Those of the mixture's rows that are not scored yet."""
        found = self.values(indices)
        return indices[np.isnan(found).any(axis=tuple(range(1, found.ndim)))]

    def of(self, indices: np.ndarray, kind: str = "logps") -> np.ndarray:
        """Scores [K*P] of a kind in the order of a batch's response rows."""
        found = self.values(indices)
        return (found if len(self.kinds) == 1 else found[..., self.kinds.index(kind)]).T.reshape(-1)

    def arrays(self, batch: Batch) -> dict[str, mx.array]:
        """The scores of a batch, named as an objective takes them."""
        return reference_arrays({kind: mx.array(self.of(batch.indices, kind)) for kind in self.kinds})

    def todo(self, rows: Rows, places: np.ndarray, batch: int) -> list[np.ndarray]:
        """The batches of `rows` at `places` in which a row is not scored yet."""
        parts = rows.parts_by_length(places, batch)
        return [part for part in parts if len(self.missing(rows.indices[part]))]

    def fill(self, forward: Forward, rows: Rows, places: np.ndarray, *, batch: int, go_on: GoOn) -> None:
        """Score what is missing of `rows` at `places`, with the weights that are in the model now.

        `go_on(done, total)` is asked after every batch; when it says no, the pass ends and keeps what it has.
        Which rows share a batch follows from `places` alone, so that a pass which goes on after an
        interruption gives the scores of one that was not interrupted, to the bit.
        """
        todo = self.todo(rows, places, batch)
        total, done, saved = sum(len(part) for part in todo), 0, time.monotonic()
        for part in todo:
            found = forward.measure(rows.batch(part))
            scores = np.stack([np.array(found[kind]) for kind in self.kinds])
            by_row = scores.reshape(len(self.kinds), -1, len(part)).T
            by_row = by_row[..., 0] if len(self.kinds) == 1 else by_row
            for file, here, inside in self._by_file(rows.indices[part]):
                file.put(inside, by_row[here])
            done += len(part)
            if not go_on(done, total):
                break
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        if todo:
            self.save()

    def save(self) -> None:
        """Write the files that have new scores."""
        for file in self.files:
            file.save()


def _read(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The file's scores; all NaN when it does not exist or is damaged, since they can be made again."""
    try:
        values = np.load(file, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return np.full(shape, np.nan, dtype=np.float32)
    fits = values.shape == shape and values.dtype == np.float32
    return values if fits else np.full(shape, np.nan, dtype=np.float32)
