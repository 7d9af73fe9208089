"""Several token stores as one: the data sets of a recipe's list, end to end.

Every data set keeps its own store and so its own file in the cache, which another recipe with the same data
set finds again. Rows are numbered through; `source_of` leads back to the data set, in which a row keeps its
number.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localdpo.core.errors import UserError
from localdpo.core.text import counted
from localdpo.data.examples import name_unread
from localdpo.data.store import TokenStore, describe_dropped
from localdpo.data.types import EncodedRow, EncodeReport, Kind


@dataclass(frozen=True, slots=True)
class Part:
    """A store, what the recipe calls its data set, and how often an epoch passes over its rows."""

    store: TokenStore
    source: str
    weight: float = 1.0


class Mixture(Sequence[EncodedRow]):
    """The rows of one or more stores of one kind; a mixture of one store is as good as that store.

    parts, weights    the stores with their names, and float[P]
    bounds            int64[P + 1]: the rows of part p are bounds[p] to bounds[p + 1]
    fingerprint       hash over the stores' own and their order
    kind, prompt_lengths, response_lengths, desirable, prompt_keys   as of a TokenStore
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        if not parts or len({part.store.kind for part in parts}) != 1:
            raise ValueError("a mixture needs stores, all of one kind")
        stores = [part.store for part in parts]
        self.parts = tuple(parts)
        self.weights = tuple(part.weight for part in parts)
        self.bounds = np.cumsum([0, *(len(store) for store in stores)])
        self.kind: Kind = stores[0].kind
        self.fingerprint = _joined([store.fingerprint for store in stores])
        self.prompt_lengths: NDArray[np.int32] = np.concatenate([s.prompt_lengths for s in stores])
        self.response_lengths: NDArray[np.int32] = np.concatenate([s.response_lengths for s in stores])
        self.prompt_keys: NDArray[np.int64] = np.concatenate([s.prompt_keys for s in stores])
        labels = [store.desirable for store in stores if store.desirable is not None]
        self.desirable: NDArray[np.bool_] | None = np.concatenate(labels) if labels else None

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def __getitem__(self, index: Any) -> Any:
        """The row at `index` (a slice gives a list), as its store has it."""
        places = range(len(self))[index]
        return self._row(places) if isinstance(places, int) else [self._row(i) for i in places]

    def _row(self, index: int) -> EncodedRow:
        number = self.part_of(index)
        row: EncodedRow = self.parts[number].store[index - int(self.bounds[number])]
        return row

    def part_of(self, index: int) -> int:
        """The number of the part that the row at `index` is of."""
        return int(np.searchsorted(self.bounds, index, side="right")) - 1

    def source_of(self, index: int) -> str:
        """What the recipe calls the data set that the row at `index` is of."""
        return self.parts[self.part_of(index)].source

    @property
    def source(self) -> str:
        """What the recipe calls them all."""
        return ", ".join(part.source for part in self.parts)

    @property
    def report(self) -> EncodeReport:
        """The sum of the stores' reports. Row numbers in `dropped` are those in their own data sets."""
        reports = [part.store.report for part in self.parts]
        dropped: dict[str, list[int]] = {}
        unread: Counter[str] = Counter()
        notes: Counter[str] = Counter()
        for report in reports:
            for reason, rows in report.dropped.items():
                dropped.setdefault(reason, []).extend(rows)
            unread.update(report.unread)
            notes.update(report.notes)
        sums = {
            name: sum(getattr(report, name) for report in reports)
            for name in ("read", "kept", "truncated", "merged", "split")
        }
        return EncodeReport(dropped=dropped, unread=dict(unread), notes=dict(notes), **sums)

    def name_rows(self, indices: NDArray[np.int64]) -> str:
        """Rows in words, counted from 1 in their own data sets: `rows 3, 7 of a.jsonl and 12 of b.jsonl`."""
        found: dict[str, list[int]] = {}
        for index in np.unique(indices).tolist():
            found.setdefault(self.source_of(index), []).append(self[index].row + 1)
        named = [f"{', '.join(map(str, rows))} of {source}" for source, rows in found.items()]
        return f"row{'s' if len(indices) > 1 else ''} {' and '.join(named)}"


def named_parts(train: Mixture, valid: Mixture) -> list[tuple[str, Part]]:
    """The data sets of a run with the option that each is of: `data.train`, or `data.train b.jsonl` where it
    lists several. `valid` adds nothing where it is held out of `train`."""
    options = {"data.train": train} | ({} if valid is train else {"data.valid": valid})
    return [
        (option if len(found.parts) == 1 else f"{option} {part.source}", part)
        for option, found in options.items()
        for part in found.parts
    ]


def report_lines(name: str, part: Part) -> list[str]:
    """What a person should know of the reading of a data set: rows that were dropped, columns that nobody
    reads, and notes on the rows that were kept. A line each; none where there is nothing to say."""
    report = part.store.report
    lines = []
    if report.dropped_total:
        reasons = describe_dropped(dict(report.dropped))
        lines.append(f"{name}: {report.dropped_total:,} of {report.read:,} rows were dropped: {reasons}")
    if report.unread:
        lines.append(f"{name}: {name_unread(report.unread)}")
    return lines + [f"{name}: {counted(rows, 'row')}: {note}" for note, rows in report.notes.items()]


def require_different(option: str, parts: Sequence[Part]) -> None:
    """Raise UserError where two parts are the same rows cut the same way: a weight says that."""
    first: dict[str, str] = {}
    for part in parts:
        earlier = first.get(part.store.fingerprint)
        if earlier is not None:
            raise UserError(
                f"{option}: {part.source} has the same rows as {earlier}; leave one out, "
                "and give the other a weight of 2 to take every row twice"
            )
        first[part.store.fingerprint] = part.source


def _joined(fingerprints: Sequence[str]) -> str:
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()[:40]
