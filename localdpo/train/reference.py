"""Log-probabilities of the responses under the reference: frozen and kept on disk, or following the policy.

A pass scores the rows that a run will visit, in batches of similar length. The last bits of a row's score
depend on the rows that share its batch, so a file belongs to one division into batches as much as to one
reference: all rows of a file come from the same batches, and what a file holds is what would be computed.
Runs that visit the same rows share a file, whatever their loss, learning rate or seed.

A batch is known completely or not at all (NaN on disk), so an interrupted pass resumes at the next batch. A
file that is damaged, or not what its name says, is never used but rebuilt.

Shape legend: N responses of a batch.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Final

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from localdpo.core.atomic import clean_leftovers, write_bytes
from localdpo.core.errors import UserError
from localdpo.core.names import cache_dir
from localdpo.data.types import Batch
from localdpo.model import lora
from localdpo.model.arrays import float_types
from localdpo.model.backend import Backend
from localdpo.model.forward import Forward
from localdpo.model.load import Base
from localdpo.recipe.schema import Recipe
from localdpo.train.data import Rows
from localdpo.train.ranks import ALONE, Ranks
from localdpo.train.step import ReferenceSums

VERSION = 3
SAVE_SECONDS = 30.0
# Called after every batch with the rows that are done and all rows; False ends the pass.
Continue = Callable[[int, int], bool]
# The fields of ResponseScores that a file holds, by their names in it.
_FIELDS: Final = {"logps": "policy", "public": "policy_public"}


class ReferenceScores:
    """The scores of the rows that a pass visits, in nats, as far as they are on disk.

    Args:
        key: see `reference_key`; it and the rows, their batches and `kinds` make the name of the file.
        rows, positions, batch: the rows that are scored, and how many of them at once at most.
        kinds: `logps`, and `public` where responses are split: plain sums, so that no option of the loss
            (such as ld_alpha) is in them.
        note: called with one line where a file was damaged.
        ranks: share the work; all of them know the same rows, and rank 0 alone reads and writes the file.

    Attributes:
        values: float32 [rows of the mixture, K], with one more axis of more than one kind; NaN where a row
            is not scored.
    """

    def __init__(
        self,
        key: Sequence[str],
        rows: Rows,
        positions: np.ndarray,
        *,
        batch: int,
        kinds: Sequence[str] = ("logps",),
        note: Callable[[str], None],
        ranks: Ranks = ALONE,
    ) -> None:
        self.rows, self.kinds, self._ranks = rows, tuple(kinds), ranks
        self._parts = rows.parts_by_length(positions, batch)
        self._part_of = np.full(len(rows), -1)
        for number, part in enumerate(self._parts):
            self._part_of[part] = number
        self._saved, self._changed = time.monotonic(), False
        self._left = len(rows)
        self._visited = rows.indices[np.concatenate(self._parts)] if self._parts else rows.indices[:0]
        shape = rows.store.response_lengths.shape
        self.values = np.full(shape if len(kinds) == 1 else (*shape, len(kinds)), np.nan, dtype=np.float32)
        composition = hashlib.sha256(np.array([len(part) for part in self._parts], dtype="<i8").tobytes())
        composition.update(self._visited.astype("<i8").tobytes())
        parts = [f"v{VERSION}", *key, rows.store.fingerprint, composition.hexdigest(), *kinds]
        self._key = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        self.file = cache_dir() / "reference" / f"{self._key[:32]}.scores"
        if not self._read():
            note(f"{self.file}: this file of reference scores is damaged; the scores are computed again")

    def of(self, indices: np.ndarray, kind: str = "logps") -> np.ndarray:
        """Scores [K*P] of a kind in the order of a batch's response rows."""
        values = self.values[indices]
        return (values if len(self.kinds) == 1 else values[..., self.kinds.index(kind)]).T.reshape(-1)

    def sums(self, batch: Batch) -> ReferenceSums:
        return ReferenceSums(*(mx.array(self.of(batch.indices, kind)) for kind in self.kinds))

    def todo(self) -> list[np.ndarray]:
        """The batches that are not scored yet, as positions of the rows."""
        return [part for part in self._parts if np.isnan(self.values[self.rows.indices[part]]).any()]

    @property
    def left(self) -> int:
        """How many of the rows are not scored yet."""
        # Looked at before every step, so not counted again once all are known.
        if self._left:
            missing = np.isnan(self.values[self._visited]).reshape(len(self._visited), -1).any(axis=1)
            self._left = int(missing.sum())
        return self._left

    @property
    def is_due(self) -> bool:
        """Whether scores wait for SAVE_SECONDS to be written."""
        return self._changed and time.monotonic() - self._saved > SAVE_SECONDS

    def score(self, forward: Forward, positions: np.ndarray) -> int:
        """Score the batches of these rows, with the weights that are in the model now; how many rows were."""
        parts = [self._parts[number] for number in np.unique(self._part_of[positions])]
        missing = [part for part in parts if np.isnan(self.values[self.rows.indices[part]]).any()]
        for _ in self._scored(forward, missing):
            pass
        return sum(len(part) for part in missing)

    def _scored(self, forward: Forward, parts: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        """Score batches; yields the rows of each when their scores are known.

        Of several ranks each scores one of as many batches, whose rows are yielded together.
        """
        size = self._ranks.size
        if size == 1:
            yield from self._scored_here(forward, parts)
            return
        for start in range(0, len(parts), size):
            group = parts[start : start + size]
            for _ in self._scored_here(forward, self._ranks.mine(group)):
                pass
            own = [self.values[self.rows.indices[part]].tolist() for part in self._ranks.mine(group)]
            for rank, scored in enumerate(self._ranks.gather(own)):
                for part, values in zip(group[rank::size], scored, strict=True):
                    self.values[self.rows.indices[part]] = values
            self._changed = self._ranks.leads
            yield np.concatenate(group)

    def _scored_here(self, forward: Forward, parts: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
        measured_parts = forward.measured(self.rows.batch(part) for part in parts)
        for part, measured in zip(parts, measured_parts, strict=True):
            scores = np.stack([np.array(getattr(measured, _FIELDS[kind])) for kind in self.kinds])
            by_row = scores.reshape(len(self.kinds), -1, len(part)).T
            self.values[self.rows.indices[part]] = by_row[..., 0] if len(self.kinds) == 1 else by_row
            self._changed = True
            yield part

    def fill(self, forward: Forward, after_batch: Continue) -> None:
        """Score what is missing, with the weights that are in the model now.

        Where `after_batch(done, total)` returns False, the pass ends and saves what it has.

        Raises UserError when the file cannot be written.
        """
        # Another run, or another pass of this one over the same rows, may have scored them since.
        self._read()
        todo = self.todo()
        total, done = sum(len(part) for part in todo), 0
        for part in self._scored(forward, todo):
            done += len(part)
            if not self._ranks.lead(after_batch(done, total)):
                break
            if self.is_due:
                self.save()
        self.save()

    def save(self) -> None:
        """Write scores that are not in the file, all or nothing, with those that another run has added to it.

        Raises UserError when the file cannot be written.
        """
        if not self._changed:
            return
        if self._ranks.size == 1:
            self._read()
        self._saved = time.monotonic()
        values = self.values[self._visited].astype("<f4").tobytes()
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            clean_leftovers(self.file.parent, shared=True)
            write_bytes(self.file, self._header(values) + values)
        except OSError as error:
            raise UserError(
                f"{self.file}: the reference scores cannot be written ({error.strerror or error}); "
                "set LOCALDPO_CACHE to a folder that can"
            ) from error
        self._changed = False

    def _read(self) -> bool:
        """Take over what the file has and is not known yet; False if the file is damaged."""
        is_whole = not self._ranks.leads or self._read_file()
        if self._ranks.size > 1:
            self.values = np.array(self._ranks.copy({"values": mx.array(self.values)})["values"])
        return is_whole

    def _read_file(self) -> bool:
        try:
            content = self.file.read_bytes()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        header, _, values = content.partition(b"\n")
        mine = self.values[self._visited]
        # The header is built again rather than parsed, so that no byte of it can differ.
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


def reference_key(recipe: Recipe, base: Base, backend: Backend, forward: Forward) -> list[str]:
    """What the recipe's reference is and computes with: model, adapter, precision, device, ..."""
    # A fresh adapter adds nothing, whatever its size; a fresh DoRA computes with the norms of the weights.
    adapter = f"fresh {recipe.lora.type or 'lora'}"
    if recipe.reference is not None:
        adapter = lora.adapter_fingerprint(lora.open_adapter(recipe.reference).path)
    precision = " ".join(sorted(str(dtype) for dtype in float_types(base.model)))
    path = f"shared {forward.shared} segments {forward.by_segments} aligned {forward.align}"
    computed = f"mlx {version('mlx')} {backend.device} {backend.blas}"
    return [base.fingerprint, adapter, precision, path, computed]


class MovingReference:
    """A reference that follows the policy (TR-DPO): its adapter moves, so its scores are computed live.

    Gorbatovski et al. 2024, arXiv 2404.09656: after every `every` steps

        reference <- alpha * policy + (1 - alpha) * reference

    over the adapter weights, the soft update for alpha < 1 and the hard one for alpha = 1. Both start as the
    same weights on the same base, so nothing else differs between them. What is averaged are the adapter's
    factors, not the products that they stand for.

    Attributes:
        weights: the reference's adapter now; a checkpoint keeps it.
    """

    def __init__(self, forward: Forward, start: lora.Weights, *, every: int, alpha: float) -> None:
        self._forward, self._every, self._alpha = forward, every, alpha
        self.weights = start

    def sums(self, batch: Batch) -> ReferenceSums:
        """Scores of a batch under the reference as it is now."""
        with lora.use(self._forward.model, self.weights):
            scores = self._forward.measure(batch)
        return ReferenceSums(scores.policy, scores.policy_public)

    def after_step(self, step: int) -> None:
        """Move the reference if `step` steps are a whole number of periods."""
        if step % self._every != 0:
            return
        policy = self._forward.model.trainable_parameters()
        alpha = self._alpha
        self.weights = tree_map(lambda old, new: alpha * new + (1.0 - alpha) * old, self.weights, policy)
        mx.eval(self.weights)
