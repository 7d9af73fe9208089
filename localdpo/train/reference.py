"""Log-probabilities of the responses under the frozen reference, computed once and kept on disk.

A pass scores the rows that a run will visit, in batches of similar length. The last bits of a row's score
depend on the rows that share its batch, so a file belongs to one division into batches as much as to one
reference: all rows of a file come from the same batches, and what is found there is what would be computed.
Runs that visit the same rows share a file, whatever their loss, learning rate or seed.

A batch is known as a whole or not at all (NaN on disk), so a pass that was interrupted goes on where it
stopped. A file that is damaged, or not what its name says, is never used: it is made again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import mlx.core as mx
import numpy as np

from localdpo.core.atomic import clean_dead_leftovers, write_bytes
from localdpo.core.errors import UserError
from localdpo.data.types import Batch
from localdpo.model.forward import Arrays, Forward
from localdpo.train.rows import Rows

VERSION = 2
SAVE_SECONDS = 30.0
GoOn = Callable[[int, int], bool]


class Reference(Protocol):
    """What gives the scores of a batch under the reference."""

    def arrays(self, batch: Batch) -> dict[str, mx.array]:
        """`reference` [K*P] in nats, and `reference_public` where responses are split."""
        ...


def reference_arrays(scores: Arrays) -> dict[str, mx.array]:
    """`Forward.scores` under the reference by the names that an objective takes them under."""
    names = {"logps": "reference", "public": "reference_public"}
    return {name: scores[kind] for kind, name in names.items() if kind in scores}


class ReferenceScores:
    """The scores of the rows that a pass visits, in nats.

    Args:
        folder: of the cache; the file's name follows from everything below.
        key: what the reference is and computes with: model, adapter, precision, device, ...
        rows, places, batch: the rows that are scored, and how many of them at once at most.
        kinds: those of `Forward.scores` that are kept, all of them plain sums, so that no option of the loss
            (such as ld_alpha) is in them.
        note: told in one line that a file was damaged.

    Attributes:
        values: float32 [rows of the mixture, K], with one more axis of more than one kind; NaN where a row
            is not scored.
    """

    def __init__(
        self,
        folder: Path,
        key: Sequence[str],
        rows: Rows,
        places: np.ndarray,
        *,
        batch: int,
        kinds: Sequence[str] = ("logps",),
        note: Callable[[str], None],
    ) -> None:
        self.rows, self.kinds = rows, tuple(kinds)
        self._parts = rows.parts_by_length(places, batch)
        self._visited = rows.indices[np.concatenate(self._parts)] if self._parts else rows.indices[:0]
        shape = rows.store.response_lengths.shape
        self.values = np.full(shape if len(kinds) == 1 else (*shape, len(kinds)), np.nan, dtype=np.float32)
        composition = hashlib.sha256(np.array([len(part) for part in self._parts], dtype="<i8").tobytes())
        composition.update(self._visited.astype("<i8").tobytes())
        self._key = _digest([f"v{VERSION}", *key, rows.store.fingerprint, composition.hexdigest(), *kinds])
        self.file = folder / "reference" / f"{self._key[:32]}.scores"
        if not self._read():
            note(f"{self.file}: this file of reference scores is damaged; it is not used and made again")

    def of(self, indices: np.ndarray, kind: str = "logps") -> np.ndarray:
        """Scores [K*P] of a kind in the order of a batch's response rows."""
        found = self.values[indices]
        return (found if len(self.kinds) == 1 else found[..., self.kinds.index(kind)]).T.reshape(-1)

    def arrays(self, batch: Batch) -> dict[str, mx.array]:
        """The scores of a batch, named as an objective takes them."""
        return reference_arrays({kind: mx.array(self.of(batch.indices, kind)) for kind in self.kinds})

    def todo(self) -> list[np.ndarray]:
        """The batches that are not scored yet, as places of the rows."""
        return [part for part in self._parts if np.isnan(self.values[self.rows.indices[part]]).any()]

    def fill(self, forward: Forward, go_on: GoOn) -> None:
        """Score what is missing, with the weights that are in the model now.

        `go_on(done, total)` is asked after every batch; when it says no, the pass ends and keeps what it has.

        Raises:
            UserError: the file cannot be written.
        """
        # Another run, or another pass of this one over the same rows, may have scored them since.
        self._read()
        todo = self.todo()
        total, done, saved = sum(len(part) for part in todo), 0, time.monotonic()
        for part in todo:
            found = forward.measure(self.rows.batch(part))
            scores = np.stack([np.array(found[kind]) for kind in self.kinds])
            by_row = scores.reshape(len(self.kinds), -1, len(part)).T
            self.values[self.rows.indices[part]] = by_row[..., 0] if len(self.kinds) == 1 else by_row
            done += len(part)
            if not go_on(done, total):
                break
            if time.monotonic() - saved > SAVE_SECONDS:
                self._save()
                saved = time.monotonic()
        if todo:
            self._save()

    def _save(self) -> None:
        """Write the scores, all or nothing, with those that another run has added to the file meanwhile."""
        self._read()
        values = self.values[self._visited].astype("<f4").tobytes()
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            clean_dead_leftovers(self.file.parent)
            write_bytes(self.file, self._header(values) + values)
        except OSError as error:
            raise UserError(
                f"{self.file}: the reference scores cannot be written ({error.strerror or error}); "
                "set LOCALDPO_CACHE to a folder that can"
            ) from error

    def _read(self) -> bool:
        """Take over what the file has and is not known yet; False if there is a file that is not whole."""
        try:
            content = self.file.read_bytes()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        header, _, values = content.partition(b"\n")
        mine = self.values[self._visited]
        # The header is made again rather than parsed, so that no byte of it can be other than it was written.
        if header + b"\n" != self._header(values) or len(values) != mine.nbytes:
            return False
        known = np.frombuffer(values, dtype="<f4").reshape(mine.shape)
        self.values[self._visited] = np.where(np.isnan(mine), known, mine)
        return True

    def _header(self, values: bytes) -> bytes:
        """The first line of a file that holds `values`: what they are, and the sha256 of that and of them."""
        shape = [len(self._visited), *self.values.shape[1:]]
        content = {"v": VERSION, "key": self._key, "shape": shape, "kinds": self.kinds}
        checksum = hashlib.sha256(json.dumps(content).encode() + values).hexdigest()
        return json.dumps(content | {"sha256": checksum}).encode() + b"\n"


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
