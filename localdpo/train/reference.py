"""Log-probabilities of the responses under the frozen reference, computed once and kept on disk.

The reference never changes, so each row is scored at most once for each (data, tokenizer, template,
truncation, model, adapter, precision): all of these are in the file's name. A row that is not
scored yet holds NaN, so a run that visits a few rows of a large set scores only those, and a pass
that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from localdpo.core.atomic import write_bytes
from localdpo.model.forward import Forward
from localdpo.train.rows import Rows

VERSION = 1
SAVE_SECONDS = 30.0
GoOn = Callable[[int, int], bool]


def cache_file(cache_dir: Path, *, data: str, model: str, adapter: str, precision: str) -> Path:
    """The file that holds the scores of one store under one reference; every argument is part of its name."""
    key = "\n".join([f"v{VERSION}", data, model, adapter, precision])
    return cache_dir / "reference" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"


class ReferenceScores:
    """Scores float32 [rows of the store, K] in nats, NaN where a row was not scored."""

    def __init__(self, file: Path, shape: tuple[int, int]) -> None:
        self.file = file
        self.values = _read(file, shape)

    def missing(self, indices: np.ndarray) -> np.ndarray:
        """Those of the store's rows that are not scored yet."""
        return indices[np.isnan(self.values[indices]).any(axis=1)]

    def of(self, indices: np.ndarray) -> np.ndarray:
        """Scores [K*P] in the order of a batch's response rows."""
        return self.values[indices].T.reshape(-1)

    def fill(self, forward: Forward, rows: Rows, places: np.ndarray, *, batch: int, go_on: GoOn) -> None:
        """Score what is missing of `rows` at `places`, with the weights that are in the model now.

        `go_on(done, total)` is asked after every batch; when it says no, the pass ends and keeps what it has.
        Which rows share a batch follows from `places` alone, so that a pass which goes on after an
        interruption gives the scores of one that was not interrupted, to the bit.
        """
        parts = rows.parts_by_length(places, batch)
        todo = [part for part in parts if len(self.missing(rows.indices[part]))]
        total, done, saved = sum(len(part) for part in todo), 0, time.monotonic()
        for part in todo:
            scores = np.array(forward.score(rows.batch(part)))
            self.values[rows.indices[part]] = scores.reshape(-1, len(part)).T
            done += len(part)
            if not go_on(done, total):
                break
            if time.monotonic() - saved > SAVE_SECONDS:
                self.save()
                saved = time.monotonic()
        if todo:
            self.save()

    def save(self) -> None:
        """Write the scores, all or nothing."""
        stream = io.BytesIO()
        np.save(stream, self.values, allow_pickle=False)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(self.file, stream.getvalue())


def _read(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """The file's scores; all NaN when it does not exist or is damaged, since they can be made again."""
    try:
        values = np.load(file, allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return np.full(shape, np.nan, dtype=np.float32)
    fits = values.shape == shape and values.dtype == np.float32
    return values if fits else np.full(shape, np.nan, dtype=np.float32)
